package feeds

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/mod/module"
)

const maxSheet = 64 << 20 // bytes of a CSV file

// A table is a number for each module. It is never changed.
type table struct {
	id      string // of its content
	numbers map[string]int
	popular *popular // of importers
}

func (t *table) digest() string { return t.id }

// A sheet loads a CSV file with the columns module and one of numbers, in any order, among others.
type sheet struct {
	where  string
	kept   string
	column string
	client *http.Client
}

func (s *sheet) restore() (*table, time.Time, error) {
	content, at, err := kept(s.kept, maxSheet)
	if err != nil {
		return nil, at, err
	}
	t, err := parseSheet(content, s.column)
	return t, at, err
}

func (s *sheet) load(ctx context.Context, _ *table) (*table, error) {
	var content []byte
	var err error
	if remote(s.where) {
		content, err = fetch(ctx, s.client, s.where, maxSheet)
	} else {
		content, err = readFile(s.where, maxSheet)
	}
	if err != nil {
		return nil, err
	}
	t, err := parseSheet(content, s.column)
	if err == nil && remote(s.where) {
		err = keep(s.kept, content)
	}
	return t, err
}

// parseSheet reads a CSV file. Names that are no module paths are passed over: lists have the standard library too.
func parseSheet(content []byte, column string) (*table, error) {
	r := csv.NewReader(bytes.NewReader(content))
	r.Comment, r.ReuseRecord = '#', true
	header, err := r.Read()
	if err != nil {
		return nil, fmt.Errorf("reading the header: %w", err)
	}
	at, number := -1, -1
	for i, name := range header {
		switch name {
		case "module":
			at = i
		case column:
			number = i
		}
	}
	if at < 0 || number < 0 {
		return nil, fmt.Errorf("its header has not both module and %s", column)
	}
	sum := sha256.Sum256(content)
	t := &table{id: "sha256:" + hex.EncodeToString(sum[:]), numbers: map[string]int{}}
	for {
		row, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if module.CheckPath(row[at]) != nil {
			continue
		}
		n, err := strconv.ParseFloat(row[number], 64)
		if err != nil || !(n >= 0 && n <= 1e9) { // NaN is neither
			line, _ := r.FieldPos(number)
			return nil, fmt.Errorf("line %d: %s %q is no number from 0 on", line, column, row[number])
		}
		t.numbers[row[at]] = int(n)
	}
	if len(t.numbers) == 0 {
		return nil, errors.New("it names no module")
	}
	if column == "importers" {
		t.popular = newPopular(t.numbers)
	}
	return t, nil
}

// bucket is how popular a module with so many importers is, 0 to 5: each step is ten times as many.
func bucket(importers int) int {
	b := 0
	for ; importers > 0 && b < 5; importers /= 10 {
		b++
	}
	return b
}
