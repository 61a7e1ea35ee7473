// Package licence finds the SPDX ids of a module's licences in its zip: by the
// texts of licence files at the module's root, and by SPDX-License-Identifier
// lines there. It is no legal opinion: of "MIT OR GPL-2.0" it gives both ids,
// and a licence text deeper in the tree is not read. Its one invariant: what an
// author puts into a zip costs bounded memory and time, and never more than a
// licence that is unknown.
package licence

import (
	"archive/zip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"

	classifier "github.com/google/licenseclassifier/v2"
	"github.com/google/licenseclassifier/v2/assets"
	"golang.org/x/mod/module"
)

// What a zip's licences are known to be.
const (
	Some    = "found"   // at least one id
	None    = "none"    // neither a licence file nor an SPDX line
	Unknown = "unknown" // there is a licence file, but none whose licence is known
)

// Bounds of what is looked at.
const (
	maxRead  = 16 << 20  // bytes of all files together
	maxText  = 256 << 10 // bytes of a licence file that are compared with known texts
	maxFiles = 16        // licence files
	maxHead  = 4 << 10   // bytes at the beginning of a source file that may hold an SPDX line
	maxHeads = 64        // such source files
	maxIDs   = 32        // ids of one module
)

// threshold is how much of a known text must be there; that of the library's own classifier.
const threshold = .8

// Licences are those of one module version.
type Licences struct {
	// Status is Some, None or Unknown.
	Status string
	// IDs are SPDX ids, sorted.
	IDs []string
}

// A Finder knows the texts of licences. Its zero value is ready; the texts,
// about 20 MB, are read when they are first needed. It is safe for many callers.
type Finder struct {
	mu    sync.Mutex // one at a time: guards texts, and bounds what hostile files cost together
	texts *classifier.Classifier
}

// Find gives the licences in a module's zip. An error is one of reading the zip.
func (f *Finder) Find(ctx context.Context, m module.Version, z *zip.Reader) (Licences, error) {
	s := search{finder: f, ids: map[string]bool{}, left: maxRead}
	licences, sources := rootFiles(m, z)
	for _, file := range licences {
		if err := errors.Join(ctx.Err(), s.licenceFile(file)); err != nil {
			return Licences{}, fmt.Errorf("looking for licences in %s: %w", m, err)
		}
	}
	for _, file := range sources {
		if err := errors.Join(ctx.Err(), s.sourceFile(file)); err != nil {
			return Licences{}, fmt.Errorf("looking for licences in %s: %w", m, err)
		}
	}
	l := Licences{Status: Some, IDs: slices.Sorted(maps.Keys(s.ids))}
	switch {
	case len(l.IDs) > 0:
		l.IDs = l.IDs[:min(len(l.IDs), maxIDs)]
	case len(licences) > 0:
		l.Status = Unknown
	default:
		l.Status = None
	}
	return l, nil
}

// licenceName is what licence files are called: LICENSE, COPYING, LICENCE-MIT, MIT-LICENSE.txt and the like.
var licenceName = regexp.MustCompile(`^(.+[-._])?(licen[cs]es?|copying|copyright|unlicense)([-._].+)?$`)

// rootFiles gives the licence files and Go files at the module's root, in the zip's order.
func rootFiles(m module.Version, z *zip.Reader) (licences, sources []*zip.File) {
	for _, file := range z.File {
		name, ok := strings.CutPrefix(file.Name, m.String()+"/")
		if !ok || strings.Contains(name, "/") {
			continue
		}
		switch name = strings.ToLower(name); {
		case path.Ext(name) == ".go":
			if len(sources) < maxHeads {
				sources = append(sources, file)
			}
		case licenceName.MatchString(name):
			if len(licences) < maxFiles {
				licences = append(licences, file)
			}
		}
	}
	return licences, sources
}

// A search is one call of Find.
type search struct {
	finder *Finder
	ids    map[string]bool
	left   int64 // bytes that may still be read
}

func (s *search) licenceFile(file *zip.File) error {
	text, err := s.read(file, s.left)
	if err != nil {
		return err
	}
	s.lines(text)
	if len(text) > maxText {
		return nil // no licence is that long: it is not looked through for one
	}
	ids, err := s.finder.match(text)
	for _, id := range ids {
		s.ids[id] = true
	}
	return err
}

func (s *search) sourceFile(file *zip.File) error {
	head, err := s.read(file, min(s.left, maxHead))
	s.lines(head)
	return err
}

// read gives the beginning of a file.
func (s *search) read(file *zip.File, limit int64) ([]byte, error) {
	r, err := file.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, limit))
	s.left -= int64(len(b))
	return b, err
}

// lines takes the ids of SPDX-License-Identifier lines.
func (s *search) lines(text []byte) {
	for line := range strings.Lines(string(text)) {
		_, expression, ok := strings.Cut(line, "SPDX-License-Identifier:")
		if !ok {
			continue
		}
		for _, id := range identifiers(expression) {
			if len(s.ids) < maxIDs {
				s.ids[id] = true
			}
		}
	}
}

// idstring is the form of an SPDX id (SPDX 2.3, annex D).
var idstring = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.-]{0,63}\+?$`)

// identifiers gives the ids in an SPDX expression. Of one that ends in -only,
// -or-later or + it gives the plain one as well, which is what a text is known by.
func identifiers(expression string) []string {
	expression, _, _ = strings.Cut(expression, "*/")
	expression, _, _ = strings.Cut(expression, "-->")
	var ids []string
	before := ""
	for _, word := range strings.FieldsFunc(expression, func(r rune) bool { return strings.ContainsRune(" \t\r\n()", r) }) {
		if exception := strings.EqualFold(before, "with"); !exception && isID(word) {
			ids = append(ids, word)
			if plain := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(word, "+"), "-only"), "-or-later"); plain != word && isID(plain) {
				ids = append(ids, plain)
			}
		}
		before = word
	}
	return ids
}

func isID(word string) bool {
	return idstring.MatchString(word) && !slices.Contains([]string{"and", "or", "with"}, strings.ToLower(word))
}

// match gives the ids of the licences whose text is in a text.
func (f *Finder) match(text []byte) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.texts == nil {
		texts, err := load()
		if err != nil {
			return nil, err
		}
		f.texts = texts
	}
	var ids []string
	for _, m := range f.texts.Match(text).Matches {
		if m.MatchType != "License" {
			continue
		}
		ids = append(ids, m.Name)
		if strings.Contains(m.Name, "GPL-") {
			ids = append(ids, m.Name+"-only", m.Name+"-or-later")
		}
	}
	return ids, nil
}

// load reads the texts of known. All that the library has would take 65 MB and
// five times as long for each file.
func load() (*classifier.Classifier, error) {
	c := classifier.NewClassifier(threshold)
	for _, id := range strings.Fields(known) {
		folder := id
		if other := folders[id]; other != "" {
			folder = other
		}
		variants := 0
		for _, variant := range []string{"pristine.txt", "license.txt", "a.txt", "b.txt", "no-header.txt"} {
			b, err := assets.ReadLicenseFile("License/" + folder + "/" + variant)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("reading the text of licence %s: %w", id, err)
			}
			c.AddContent("License", id, variant, b)
			variants++
		}
		if variants == 0 {
			return nil, fmt.Errorf("reading the text of licence %s: %w", id, fs.ErrNotExist)
		}
	}
	return c, nil
}

// known are the licences that are told apart, as SPDX names them: those of Go
// modules, and those that companies forbid. A text does not say whether later
// versions of a GNU licence hold as well, so it counts as all its three names:
// a rule that forbids one of them finds it.
const known = `
	MIT Apache-1.1 Apache-2.0 0BSD BSD-2-Clause BSD-3-Clause BSD-3-Clause-Clear BSD-4-Clause ISC Zlib Unlicense WTFPL
	CC0-1.0 BSL-1.0 UPL-1.0 PostgreSQL NCSA X11 Python-2.0 Artistic-1.0 Artistic-2.0 OpenSSL Beerware
	MPL-1.0 MPL-1.1 MPL-2.0 EPL-1.0 EPL-2.0 CDDL-1.0 CDDL-1.1 CPL-1.0 CPAL-1.0 EUPL-1.1 MS-PL MS-RL OSL-3.0 AFL-3.0 OFL-1.1
	GPL-1.0 GPL-2.0 GPL-3.0 LGPL-2.0 LGPL-2.1 LGPL-3.0 AGPL-1.0 AGPL-3.0 CECILL-2.1
	SSPL-1.0 BUSL-1.1 Elastic-2.0 LicenseRef-Commons-Clause
	CC-BY-3.0 CC-BY-4.0 CC-BY-SA-3.0 CC-BY-SA-4.0 CC-BY-ND-4.0
	CC-BY-NC-3.0 CC-BY-NC-4.0 CC-BY-NC-SA-3.0 CC-BY-NC-SA-4.0 CC-BY-NC-ND-3.0 CC-BY-NC-ND-4.0`

// folders are where the library has what it does not call by its SPDX id.
var folders = map[string]string{
	"0BSD":                      "BSD-0-Clause",
	"BUSL-1.1":                  "Business-Source-License-1.1",
	"LicenseRef-Commons-Clause": "Commons-Clause",
}
