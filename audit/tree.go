package audit

import (
	"crypto/sha256"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// An edge is the right edge of an RFC 6962 tree: the roots of its complete subtrees, largest first. It is all that
// appending needs; its zero value is the empty tree.
type edge struct {
	size  int64
	roots [64]tlog.Hash
}

// push adds a leaf.
func (e *edge) push(leaf tlog.Hash) {
	top := bits.OnesCount64(uint64(e.size))
	for n := e.size; n&1 == 1; n >>= 1 {
		top--
		leaf = tlog.NodeHash(e.roots[top], leaf)
	}
	e.roots[top] = leaf
	e.size++
}

// root returns the root of the tree.
func (e *edge) root() tlog.Hash {
	n := bits.OnesCount64(uint64(e.size))
	if n == 0 {
		return sha256.Sum256(nil)
	}
	root := e.roots[n-1]
	for i := n - 2; i >= 0; i-- {
		root = tlog.NodeHash(e.roots[i], root)
	}
	return root
}
