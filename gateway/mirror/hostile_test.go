package mirror_test

import (
	"errors"
	"io/fs"
	"testing"

	xmodule "golang.org/x/mod/module"

	"github.com/headgate/headgate/gateway/mirror"
	"github.com/headgate/headgate/gateway/mirror/mirrortest"
)

// C47: no rule of zips rests on the checksum database.
func TestHostileZips(t *testing.T) {
	t.Parallel()
	v := xmodule.Version{Path: hostilePath, Version: "v1.0.0"}
	for _, tt := range mirrortest.HostileZips(v) {
		t.Run("C47 "+tt.Name, func(t *testing.T) {
			zip, err := tt.Make()
			must(t, err)
			up := mirrortest.Start(t)
			must(t, up.Add(mirrortest.Module{Version: v, Zip: zip, Files: map[string][]byte{"go.mod": []byte(hostileMod)}}))
			b := start(t, up, func(c *mirror.Config, _ *mirror.Options) { c.SumdbExempt = []string{"example.com"} })
			_, _, err = b.get(t.Context(), "/example.com/h/@v/v1.0.0.zip")
			if !errors.Is(err, mirror.ErrUpstream) || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Open = %v, want ErrUpstream", err)
			}
			t.Log(err)
			b.nothingStored(t, hostilePath)
		})
	}
}
