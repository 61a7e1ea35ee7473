package git

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"testing/fstest"
	"unicode/utf8"
)

// Limits of a tree, checked before any of its files is read.
const (
	maxFiles     = 5000
	maxBlob      = 1 << 20
	maxTreeBytes = 32 << 20
)

// lfs begins a file whose content is somewhere else.
const lfs = "version https://git-lfs.github.com/spec/"

// entry is one file of a tree.
type entry struct {
	path, id string
	size     int
}

// Files are the files of a commit, in memory. Names that begin with a dot belong to the repository and are left out.
// Anything but a plain file is refused, wherever it is.
func (r *Repository) Files(ctx context.Context, c Commit) (fs.FS, error) {
	out, err := r.local(ctx, "", "ls-tree", "-r", "-l", "-z", "--full-tree", c.ID)
	if err != nil {
		return nil, fmt.Errorf("listing the files of %s: %w: %w", c.ID, ErrRefused, err)
	}
	entries, err := parseTree(string(out))
	if err != nil {
		return nil, fmt.Errorf("listing the files of %s: %w: %w", c.ID, ErrRefused, err)
	}
	var ids strings.Builder
	for _, e := range entries {
		ids.WriteString(e.id + "\n")
	}
	blobs, err := r.local(ctx, ids.String(), "cat-file", "--batch")
	if err != nil {
		return nil, fmt.Errorf("reading the files of %s: %w: %w", c.ID, ErrRefused, err)
	}
	files, err := cutBlobs(entries, blobs)
	if err != nil {
		return nil, fmt.Errorf("reading the files of %s: %w: %w", c.ID, ErrRefused, err)
	}
	return files, nil
}

// parseTree reads `ls-tree -r -l -z` and holds it to what a bundle may be.
func parseTree(out string) ([]entry, error) {
	var entries []entry
	total := 0
	for record := range strings.SplitSeq(strings.TrimSuffix(out, "\x00"), "\x00") {
		head, name, _ := strings.Cut(record, "\t")
		words := strings.Fields(head)
		if len(words) != 4 || name == "" || !isID(words[2]) {
			return nil, fmt.Errorf("git lists %q", record)
		}
		if err := plainFile(words[0], name); err != nil {
			return nil, err
		}
		if strings.HasPrefix(name, ".") || strings.Contains(name, "/.") {
			continue
		}
		size, err := strconv.Atoi(words[3])
		if err != nil || size < 0 || size > maxBlob {
			return nil, fmt.Errorf("%s: has %s bytes; at most %d are taken", name, words[3], maxBlob)
		}
		entries = append(entries, entry{name, words[2], size})
		if total += size; total > maxTreeBytes || len(entries) > maxFiles {
			return nil, fmt.Errorf("more than %d files or %d bytes", maxFiles, maxTreeBytes)
		}
	}
	return entries, nil
}

// plainFile refuses what is no regular file, and names that a file system could take for another.
func plainFile(mode, name string) error {
	switch mode {
	case "100644", "100755", "100664":
	case "120000":
		return fmt.Errorf("%s: is a symbolic link; want a plain file", strconv.QuoteToASCII(name))
	case "160000":
		return fmt.Errorf("%s: is a submodule; want plain files", strconv.QuoteToASCII(name))
	default:
		return fmt.Errorf("%s: has mode %s; want a plain file", strconv.QuoteToASCII(name), mode)
	}
	if !utf8.ValidString(name) || !fs.ValidPath(name) || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' }) {
		return fmt.Errorf("%s: is no name for a file of a bundle", strconv.QuoteToASCII(name))
	}
	for element := range strings.SplitSeq(name, "/") {
		if strings.EqualFold(element, ".git") || strings.EqualFold(element, ".gitmodules") {
			return fmt.Errorf("%s: belongs to git itself", strconv.QuoteToASCII(name))
		}
	}
	return nil
}

// cutBlobs reads the answer of `cat-file --batch`, which must be the listed files in the same order.
func cutBlobs(entries []entry, blobs []byte) (fstest.MapFS, error) {
	files := fstest.MapFS{}
	for _, e := range entries {
		head := fmt.Sprintf("%s blob %d\n", e.id, e.size)
		rest, ok := bytes.CutPrefix(blobs, []byte(head))
		if !ok || len(rest) < e.size+1 || rest[e.size] != '\n' {
			return nil, fmt.Errorf("%s: git gives something else than it listed", e.path)
		}
		content := rest[:e.size:e.size]
		if bytes.HasPrefix(content, []byte(lfs)) {
			return nil, fmt.Errorf("%s: is a pointer to Git LFS, which is not followed", e.path)
		}
		files[e.path], blobs = &fstest.MapFile{Data: content, Mode: 0o600}, rest[e.size+1:]
	}
	if len(blobs) > 0 {
		return nil, fmt.Errorf("git gives %d bytes more than it listed", len(blobs))
	}
	return files, nil
}
