package identity

import (
	"bytes"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

const (
	maxFeed     = 64 << 20 // bytes
	maxFeedRows = 1_000_000
	// ahead is how far a feed's clock may be before ours.
	ahead = 5 * time.Minute
)

// A deviceRow is what one feed says of one device.
type deviceRow struct {
	id, state          string
	owner, ownerIssuer string
	shared             bool
	serial, spki       string // of its certificate, as serialText writes it, and hex; empty: any
	platform           string
	managed            bool
	facts              []reading
	former             []FormerKey // as renewed here
}

// A reading is a fact as it was reported.
type reading struct {
	name, value string
	at          int64 // seconds; 0: not said
}

// A catalog is one import of a feed. It is never changed.
type catalog struct {
	rows    map[string]deviceRow
	refused int   // rows that were left out
	why     error // the first of them
}

// A cell is one value of a record, under the feed's own name for it.
type cell struct{ column, value string }

// parseFeed reads a feed of the kind that its name says. Rows that are wrong are left out and counted, and so are all
// of those that share an id, a serial number or a key: which of them is meant, nobody can say.
func parseFeed(f Feed, name string, data []byte, now time.Time) (*catalog, error) {
	records, err := parseRecords(name, data)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	c := &catalog{rows: map[string]deviceRow{}}
	names := columnNames(f.Columns)
	taken := map[string]int{}
	rows := make([]deviceRow, 0, len(records))
	for n, record := range records {
		row, err := readRow(record, names, len(f.Columns) > 0, now)
		if err != nil {
			c.refuse(fmt.Errorf("row %d: %w", n+1, err))
			continue
		}
		for _, key := range row.keys() {
			taken[key]++
		}
		rows = append(rows, row)
	}
	for _, row := range rows {
		if slices.ContainsFunc(row.keys(), func(key string) bool { return taken[key] > 1 }) {
			c.refuse(fmt.Errorf("device %s: its id, serial number or key stands there twice", row.id))
			continue
		}
		c.rows[row.id] = row
	}
	if len(c.rows) == 0 {
		return nil, fmt.Errorf("reading %s: no device in it; %w", name, errors.Join(c.why))
	}
	return c, nil
}

func (c *catalog) refuse(err error) {
	c.refused++
	if c.why == nil {
		c.why = err
	}
}

// keys are what no two devices have in common.
func (r deviceRow) keys() []string {
	keys := []string{"id " + r.id}
	if r.serial != "" {
		keys = append(keys, "serial "+r.serial)
	}
	if r.spki != "" {
		keys = append(keys, "spki "+r.spki)
	}
	return keys
}

func parseRecords(name string, data []byte) ([][]cell, error) {
	switch strings.ToLower(path.Ext(name)) {
	case ".csv":
		return csvRecords(data)
	case ".json":
		if err := checkNames(data); err != nil {
			return nil, err
		}
		var v any
		d := json.NewDecoder(bytes.NewReader(data))
		d.UseNumber()
		if err := d.Decode(&v); err != nil {
			return nil, err
		}
		return objectRecords(v)
	case ".yaml", ".yml":
		var v any
		if err := yaml.Unmarshal(data, &v); err != nil {
			return nil, err
		}
		return objectRecords(v)
	}
	return nil, errors.New("want a name that ends in .csv, .json or .yaml")
}

// csvRecords reads a table whose first line names its columns.
func csvRecords(data []byte) ([][]cell, error) {
	r := csv.NewReader(bytes.NewReader(bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))))
	table, err := r.ReadAll()
	if err != nil {
		return nil, err
	}
	if len(table) == 0 || len(table) > maxFeedRows {
		return nil, fmt.Errorf("%d lines; want a line of names and at most %d more", len(table), maxFeedRows)
	}
	head := table[0]
	for n, column := range head {
		if slices.Contains(head[:n], column) {
			return nil, fmt.Errorf("column %q is there twice", column)
		}
	}
	records := make([][]cell, 0, len(table)-1)
	for _, line := range table[1:] {
		record := make([]cell, len(line))
		for n, value := range line {
			record[n] = cell{head[n], value}
		}
		records = append(records, record)
	}
	return records, nil
}

// objectRecords reads a list of objects, or an object whose "devices" is one.
func objectRecords(v any) ([][]cell, error) {
	if m, ok := v.(map[string]any); ok {
		v = m["devices"]
	}
	list, ok := v.([]any)
	if !ok || len(list) > maxFeedRows {
		return nil, errors.New("want a list of devices, or an object with the key devices")
	}
	records := make([][]cell, 0, len(list))
	for n, item := range list {
		m, ok := item.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("entry %d is no object", n+1)
		}
		var record []cell
		for name, value := range m {
			inner, nested := value.(map[string]any)
			if !nested {
				record = append(record, cell{name, scalarText(value)})
				continue
			}
			for fact, value := range inner { // facts: {disk_encrypted: true}
				record = append(record, cell{fact, scalarText(value)})
			}
		}
		records = append(records, record)
	}
	return records, nil
}

// scalarText is a value as a table would hold it; what is no value gives what no column accepts.
func scalarText(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case bool:
		return strconv.FormatBool(v)
	case json.Number:
		return v.String()
	case int, int64, uint64, float64:
		return fmt.Sprint(v)
	case time.Time:
		return v.UTC().Format(time.RFC3339)
	}
	return "=?"
}

// fieldNames are the columns with a meaning of their own; any other is a fact.
var fieldNames = []string{"id", "state", "owner", "owner_issuer", "shared", "serial", "spki", "platform", "managed", "observed_at"}

// columnNames turns the configured names around: from the feed's to ours.
func columnNames(configured map[string]string) map[string]string {
	names := map[string]string{}
	for _, name := range fieldNames {
		if configured[name] == "" {
			names[name] = name
		}
	}
	for ours, theirs := range configured {
		names[theirs] = ours
	}
	return names
}

// readRow reads one record. Where columns are configured, those that are not named are none of ours.
func readRow(record []cell, names map[string]string, configured bool, now time.Time) (deviceRow, error) {
	r := deviceRow{state: "enrolled", platform: "unknown"}
	var observed int64
	for _, c := range record {
		name, known := names[c.column]
		if !known {
			if configured || !shortName.MatchString(c.column) {
				continue
			}
			name = c.column
		}
		value := strings.TrimSpace(c.value)
		if err := checkCell(c.value); err != nil {
			return r, fmt.Errorf("%s: %w", name, err)
		}
		if value == "" {
			continue
		}
		if name == "observed_at" {
			at, err := parseMoment(value, now)
			if err != nil {
				return r, fmt.Errorf("observed_at: %w", err)
			}
			observed = at
			continue
		}
		if err := r.set(name, value); err != nil {
			return r, fmt.Errorf("%s: %w", name, err)
		}
	}
	if !deviceName.MatchString(r.id) {
		return r, fmt.Errorf("id: %.64q; want letters, digits, dot, dash and underscore, at most 128", r.id)
	}
	for n := range r.facts {
		r.facts[n].at = observed
	}
	slices.SortFunc(r.facts, func(a, b reading) int { return strings.Compare(a.name, b.name) })
	return r, nil
}

// checkCell refuses what a spreadsheet would run: whoever can name a device could reach whoever opens an export.
func checkCell(value string) error {
	if len(value) > 1024 {
		return fmt.Errorf("%d bytes; want at most 1024", len(value))
	}
	if value != "" && strings.ContainsRune("=+-@\t\r", rune(value[0])) {
		return errors.New("it begins as a formula does")
	}
	return nil
}

func (r *deviceRow) set(name, value string) (err error) {
	switch name {
	case "id":
		r.id = value
	case "state":
		r.state = deviceState(value)
	case "owner":
		r.owner = value
	case "owner_issuer":
		r.ownerIssuer = value
	case "shared":
		r.shared, err = strconv.ParseBool(strings.ToLower(value))
	case "managed":
		r.managed, err = strconv.ParseBool(strings.ToLower(value))
	case "serial":
		r.serial, err = parseSerial(value)
	case "spki":
		r.spki = strings.ToLower(value)
		if raw, herr := hex.DecodeString(r.spki); herr != nil || len(raw) != 32 {
			err = errors.New("want 64 hex digits")
		}
	case "platform":
		r.platform = platformOf(value)
	default:
		r.facts = append(r.facts, reading{name: name, value: value})
	}
	return err
}

// deviceState puts a state into one of our words; a word that is not known here is no enrolled device.
func deviceState(s string) string {
	switch s = strings.ToLower(s); s {
	case "enrolled", "active":
		return "enrolled"
	case "blocked", "lost", "stolen":
		return "blocked"
	}
	return "other"
}

func platformOf(s string) string {
	switch s = strings.ToLower(s); {
	case strings.HasPrefix(s, "mac"), s == "darwin":
		return "darwin"
	case strings.HasPrefix(s, "windows"):
		return "windows"
	case strings.HasPrefix(s, "linux"):
		return "linux"
	}
	return "other"
}

// parseSerial reads a certificate's serial number in hex, with or without colons.
func parseSerial(s string) (string, error) {
	n, ok := new(big.Int).SetString(strings.ReplaceAll(strings.TrimPrefix(strings.ToLower(s), "0x"), ":", ""), 16)
	if !ok || n.Sign() <= 0 || n.BitLen() > 160 {
		return "", errors.New("want a certificate's serial number in hex")
	}
	return serialText(n), nil
}

// parseMoment reads a time of the past: RFC 3339, the form of spreadsheets in UTC, or seconds since 1970.
func parseMoment(s string, now time.Time) (int64, error) {
	var at int64
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		at = n
	} else {
		t, err := time.Parse(time.RFC3339, s)
		if err != nil {
			if t, err = time.Parse(time.DateTime, s); err != nil {
				return 0, fmt.Errorf("%.64q is no time", s)
			}
		}
		at = t.Unix()
	}
	if at <= 0 || at > now.Add(ahead).Unix() {
		return 0, fmt.Errorf("%.64q is in the future or before 1970", s)
	}
	return at, nil
}
