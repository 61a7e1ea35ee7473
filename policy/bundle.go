package policy

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing/fstest"
	"time"
	"unicode/utf8"

	"github.com/open-policy-agent/opa/v1/ast"
)

// Limits of a bundle, checked before a file is read.
const (
	maxFiles       = 5000
	maxFileBytes   = 1 << 20
	maxBundleBytes = 32 << 20
)

// configFiles must all be there: a rules.yaml that went missing must not take its rules along in silence.
var configFiles = []string{"bundle.yaml", "config/rules.yaml", "config/teams.yaml"}

// waiversName may be absent: then nothing is forgiven.
const waiversName = "config/waivers.yaml"

// denyName may be absent, too: what is denied whatever the rules say.
const denyName = "deny.yaml"

// bundle is one revision of policy: its files, and after build what the compiler takes.
type bundle struct {
	files    map[string][]byte // by slash-separated path
	tests    map[string][]byte // *_test.rego and tests/*.yaml, which are not part of what is served
	manifest manifest
	archive  []byte // deterministic tar of files
	digest   string // SHA-256 of archive in hex
	revision string // for people: the commit, else the beginning of the digest

	modules map[string]*ast.Module
	data    ast.Object
	deny    denyList
}

// readBundle collects the files of a bundle. A manifest with `library: default` takes the Rego from library, so that an
// archive is complete; an archive has it already.
func readBundle(fsys, library fs.FS) (*bundle, error) {
	b := &bundle{files: map[string][]byte{}, tests: map[string][]byte{}}
	if err := b.collect(fsys, anyFile); err != nil {
		return nil, err
	}
	for _, name := range configFiles {
		if b.files[name] == nil {
			return nil, fmt.Errorf("%s: is missing; a bundle has %s", name, strings.Join(configFiles, ", "))
		}
	}
	if b.files[waiversName] == nil {
		b.files[waiversName] = []byte("waivers: []\n") // nothing is forgiven
	}
	var err error
	if b.manifest, err = parseManifest(b.files["bundle.yaml"]); err != nil {
		return nil, err
	}
	if _, archived := fsys.(archiveFS); b.manifest.Library == "default" && !archived {
		for name := range b.files {
			if strings.HasSuffix(name, ".rego") && !strings.HasPrefix(name, "site/") {
				return nil, fmt.Errorf("%s: Rego outside site/ in a bundle with library: default; want library: own, or the file below site/", name)
			}
		}
		if err := b.collect(library, libraryFile); err != nil {
			return nil, fmt.Errorf("reading library: %w", err)
		}
	}
	if b.archive, err = pack(b.files); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b.archive)
	b.digest = hex.EncodeToString(sum[:])
	b.revision = b.digest[:12]
	return b, nil
}

func anyFile(string) bool { return true }

func libraryFile(name string) bool { return strings.HasSuffix(name, ".rego") && !isTest(name) }

func isTest(name string) bool {
	return strings.HasSuffix(name, "_test.rego") || path.Dir(name) == "tests" && strings.HasSuffix(name, ".yaml")
}

// collect reads the files of fsys that want names. Every file has a place in a bundle or is an error: a rule file that
// is not loaded because of its name would be a rule that does not hold.
func (b *bundle) collect(fsys fs.FS, want func(string) bool) error {
	total := 0
	seen := map[string]string{}
	return fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("reading bundle: %w", err)
		}
		if name != "." && strings.HasPrefix(path.Base(name), ".") {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if d.IsDir() || !want(name) {
			return nil
		}
		if twin := seen[strings.ToLower(name)]; twin != "" {
			return fmt.Errorf("%s: differs from %s only by case", name, twin)
		}
		seen[strings.ToLower(name)] = name
		if len(seen) > maxFiles {
			return fmt.Errorf("bundle has more than %d files", maxFiles)
		}
		content, err := readFile(fsys, name, d)
		if err != nil || content == nil {
			return err
		}
		if total += len(content); total > maxBundleBytes {
			return fmt.Errorf("bundle is larger than %d bytes", maxBundleBytes)
		}
		if isTest(name) {
			b.tests[name] = content
		} else {
			b.files[name] = content
		}
		return nil
	})
}

// readFile reads one file of a bundle; nil content means that the file belongs to the repository, not to the bundle.
func readFile(fsys fs.FS, name string, d fs.DirEntry) ([]byte, error) {
	if !d.Type().IsRegular() {
		return nil, fmt.Errorf("%s: is no regular file", name)
	}
	if !utf8.ValidString(name) {
		return nil, fmt.Errorf("%q: name is not UTF-8", name)
	}
	switch {
	case slices.Contains(configFiles, name), name == waiversName, name == denyName, isTest(name):
	case strings.HasSuffix(name, ".md"), strings.HasSuffix(name, ".go"),
		strings.HasSuffix(name, "~"): // an editor's copy of what was there before
		return nil, nil
	case strings.HasSuffix(name, ".rego") && strings.Contains(name, "/"):
	default:
		return nil, fmt.Errorf("%s: has no place in a bundle; want %s, %s, %s, tests/*.yaml, Rego in folders, or *.md", name, strings.Join(configFiles, ", "), waiversName, denyName)
	}
	f, err := fsys.Open(name)
	if err != nil {
		return nil, fmt.Errorf("reading bundle: %w", err)
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("reading bundle: %w", err)
	}
	if len(content) > maxFileBytes {
		return nil, fmt.Errorf("%s: is larger than %d bytes", name, maxFileBytes)
	}
	if !utf8.Valid(content) {
		return nil, fmt.Errorf("%s: is not UTF-8", name)
	}
	return content, nil
}

// pack makes an archive: sorted names, no times, so that equal files have equal digests.
func pack(files map[string][]byte) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		h := &tar.Header{Name: name, Mode: 0o600, Size: int64(len(files[name])), ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("packing %s: %w", name, err)
		}
		if _, err := w.Write(files[name]); err != nil {
			return nil, fmt.Errorf("packing %s: %w", name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("packing bundle: %w", err)
	}
	return buf.Bytes(), nil
}

// archiveFS is an unpacked archive, whose library is part of it.
type archiveFS struct{ fstest.MapFS }

// openArchive reads a kept archive whose name ends in its digest, and refuses one with other bytes.
func openArchive(name string) (fs.FS, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("opening policy archive: %w", err)
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, 2*maxBundleBytes))
	if err != nil {
		return nil, fmt.Errorf("reading policy archive: %w", err)
	}
	sum := sha256.Sum256(content)
	if !strings.HasSuffix(filepath.Base(name), "-"+hex.EncodeToString(sum[:])+".tar") {
		return nil, fmt.Errorf("policy archive %s has SHA-256 %x", name, sum)
	}
	fsys, err := unpack(content)
	if err != nil {
		return nil, fmt.Errorf("reading policy archive %s: %w", name, err)
	}
	return fsys, nil
}

func unpack(archive []byte) (archiveFS, error) {
	files := fstest.MapFS{}
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return archiveFS{files}, nil
		}
		if err != nil {
			return archiveFS{}, err
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return archiveFS{}, err
		}
		files[h.Name] = &fstest.MapFile{Data: data, Mode: 0o600}
	}
}

// build parses everything: Rego into modules, YAML into the index that Rego reads.
func (b *bundle) build() error {
	b.modules = map[string]*ast.Module{}
	for _, name := range slices.Sorted(maps.Keys(b.files)) {
		if !strings.HasSuffix(name, ".rego") {
			continue
		}
		module, err := ast.ParseModuleWithOpts(name, string(b.files[name]), ast.ParserOptions{
			ProcessAnnotation: true, RegoVersion: ast.RegoV1, Capabilities: capabilities(),
		})
		if err != nil {
			return fmt.Errorf("parsing Rego: %w", err)
		}
		if err := rootOf(name, module); err != nil {
			return err
		}
		b.modules[name] = module
	}
	index, err := buildIndex(b.files)
	if err != nil {
		return err
	}
	if err := index.affordable(); err != nil {
		return err
	}
	value, err := ast.InterfaceToValue(map[string]any{"config": index})
	if err != nil {
		return fmt.Errorf("building index: %w", err)
	}
	b.data = value.(ast.Object)
	b.deny, err = parseDeny(b.files[denyName])
	return err
}

// rootOf holds a file to its root: site/x/… is package site.…, any other folder f is package headgate.f. So nothing can
// define system, data, or a second piece of a library package.
func rootOf(name string, module *ast.Module) error {
	got := strings.TrimPrefix(module.Package.Path.String(), "data.")
	folder := strings.ReplaceAll(path.Dir(name), "/", ".")
	want := "headgate." + folder
	if folder == "site" || strings.HasPrefix(folder, "site.") {
		if got == "site" || strings.HasPrefix(got, "site.") {
			return nil
		}
		want = "site, or below it"
	} else if got == want {
		return nil
	}
	return fmt.Errorf("%s: is package %s; a file of this folder is package %s", name, got, want)
}

// hasData tells the compiler which paths hold data, so that no package can shadow it.
func (b *bundle) hasData(p []string) (bool, error) {
	return len(p) > 0 && p[0] == "config", nil
}
