package git_test

import (
	"bytes"
	"fmt"
	"io"
)

func pktLength(n int) string { return fmt.Sprintf("%04x", n) }

// blobHeader is how a pack begins a blob of a size: gitformat-pack(5).
func blobHeader(size uint64) []byte {
	b := []byte{3<<4 | byte(size&15)}
	for size >>= 4; size > 0; size >>= 7 {
		b[len(b)-1] |= 0x80
		b = append(b, byte(size&0x7f))
	}
	return b
}

// readAgain is a body of which the beginning was read.
func readAgain(read []byte, rest io.ReadCloser) io.ReadCloser {
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(read), rest), rest}
}
