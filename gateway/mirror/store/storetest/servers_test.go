package storetest_test

import (
	"testing"

	"github.com/headgate/headgate/gateway/mirror/store/storetest"
)

// TestServersStart builds what is not built yet: make deps runs it first.
func TestServersStart(t *testing.T) {
	_, s3 := storetest.S3(t)
	for _, location := range []string{s3, storetest.GCS(t), storetest.Azure(t)} {
		t.Log(location)
	}
}
