package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
)

// protocolRows are how many rows the list of the protocol has of each kind: requirements, tests of their own, pains.
var protocolRows = map[string]int{"C": 52, "E": 17, "N": 18}

// TestProtocolCoverage wants a test for each row. A test covers a row by naming it: a Go test in the name of a case, in
// a message or in a comment of its, a script in a comment line. The table that it prints is made of what stands in the tree.
func TestProtocolCoverage(t *testing.T) {
	tests := map[string][]string{} // row → names of tests
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && strings.HasPrefix(d.Name(), ".") && d.Name() != "..":
			return filepath.SkipDir
		case strings.HasSuffix(path, "_test.go") && d.Name() != "protocol_test.go": // which names rows to test itself
			return namedInGo(path, tests)
		case strings.HasSuffix(path, ".txtar") && strings.Contains(path, "testdata/script/"):
			return namedInScript(path, tests)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	for _, kind := range slices.Sorted(maps.Keys(protocolRows)) {
		for i := range protocolRows[kind] {
			row := fmt.Sprint(kind, i+1)
			names := slices.Sorted(slices.Values(tests[row]))
			if names = slices.Compact(names); len(names) == 0 {
				t.Errorf("no test names %s", row)
			}
			fmt.Fprintf(&table, "%-4s %s\n", row, strings.Join(names, ", "))
		}
	}
	t.Log("row  tests\n" + table.String())
}

// namedInGo notes the rows that a test file names, by function; what a table outside of tests names counts for it.
func namedInGo(path string, tests map[string][]string) error {
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
	if err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	folder := strings.TrimPrefix(filepath.Dir(path), "../../")
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		name := folder + "." + fn.Name.Name
		if strings.HasPrefix(fn.Name.Name, "Test") {
			note(tests, name, fn.Doc.Text())
			for _, c := range f.Comments {
				if fn.Pos() < c.Pos() && c.End() < fn.End() {
					note(tests, name, c.Text())
				}
			}
		}
		ast.Inspect(fn, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				note(tests, name, lit.Value)
			}
			return true
		})
	}
	return nil
}

// namedInScript notes the rows that the comment lines of a script name.
func namedInScript(path string, tests map[string][]string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	name := strings.TrimPrefix(path, "../../cmd/headgate/testdata/")
	for line := range strings.Lines(string(txtar.Parse(data).Comment)) {
		if strings.HasPrefix(line, "#") {
			note(tests, name, line)
		}
	}
	return nil
}

// threatRows is how many attacks the list of threats has.
const threatRows = 85

// TestThreatCoverage wants a test named after each attack: a test function, or a case in one. Comments do not count.
func TestThreatCoverage(t *testing.T) {
	tests := map[string]bool{}
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && strings.HasPrefix(d.Name(), ".") && d.Name() != "..":
			return filepath.SkipDir
		case !strings.HasSuffix(path, "_test.go") || d.Name() == "protocol_test.go":
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("reading %s: %w", path, err)
		}
		for _, m := range threat.FindAllStringSubmatch(string(data), -1) {
			for n := range strings.FieldsSeq(m[1] + m[2]) {
				tests[n] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range threatRows {
		name := fmt.Sprint("T", i+1)
		if !tests[name] {
			t.Errorf("no test is named after %s", name)
		}
	}
}

// threat is func TestT28Headers, or the numbers at the start of a case: "T22 T23 on the public listener".
var threat = regexp.MustCompile(`func Test(T[1-9][0-9]?)[A-Z_(]|"((?:T[1-9][0-9]? )+)`)

// row is C11, and C31–C33 are three.
var row = regexp.MustCompile(`\b([CEN])([1-9][0-9]?)(?:–([CEN])([1-9][0-9]?))?\b`)

func note(tests map[string][]string, name, text string) {
	for _, m := range row.FindAllStringSubmatch(text, -1) {
		first, err := strconv.Atoi(m[2])
		if err != nil {
			continue
		}
		last := first
		if m[1] == m[3] {
			if n, err := strconv.Atoi(m[4]); err == nil {
				last = n
			}
		}
		for i := first; i <= last; i++ {
			tests[m[1]+strconv.Itoa(i)] = append(tests[m[1]+strconv.Itoa(i)], name)
		}
	}
}

// A test that cannot fail is none: rows are found by name alone, in ranges, and in scripts only in comments.
func TestProtocolRows(t *testing.T) {
	tests := map[string][]string{}
	note(tests, "a", `"C11 one", "C31–C33 three", "AC5", "C060", "C5x", "N2, E3"`)
	got := slices.Sorted(maps.Keys(tests))
	if want := []string{"C11", "C31", "C32", "C33", "E3", "N2"}; !slices.Equal(got, want) {
		t.Errorf("rows are %v, want %v", got, want)
	}
}
