package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// A netrcChange is what login did to a netrc file.
type netrcChange struct {
	File   string `json:"file"`
	Before string `json:"before,omitempty"` // the machine's entry as it was; empty: it had none
	Fresh  bool   `json:"fresh,omitempty"`  // there was no file
}

// netrcFile is the file that the go command reads, behind links.
func netrcFile() (string, error) {
	if name := os.Getenv("NETRC"); name != "" {
		return followed(name), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("finding .netrc: %w", err)
	}
	if runtime.GOOS == "windows" {
		if old := filepath.Join(home, "_netrc"); isFile(old) {
			return followed(old), nil
		}
	}
	return followed(filepath.Join(home, ".netrc")), nil
}

func isFile(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

func followed(name string) string {
	if target, err := filepath.EvalSymlinks(name); err == nil {
		return target
	}
	return name
}

func netrcEntry(machine, password string) string {
	return "machine " + machine + " login headgate password " + password
}

// setNetrc puts our entry in the place of the machine's, or before all others where it has none: a default entry ends
// what the go command reads. Not one other byte changes.
func setNetrc(file, machine, password string) (*netrcChange, error) {
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	change := &netrcChange{File: file, Fresh: err != nil}
	entry := netrcEntry(machine, password)
	at, end, found := findMachine(text, machine)
	if !found {
		entry += "\n"
	}
	change.Before = string(text[at:end])
	return change, replaceFile(file, splice(text, at, end, entry))
}

// undo takes our entry out and puts back what there was. An entry that somebody changed since stays.
func (n *netrcChange) undo(machine, password string) (bool, error) {
	text, err := os.ReadFile(n.File)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading %s: %w", n.File, err)
	}
	ours := netrcEntry(machine, password)
	at, _, found := findMachine(text, machine)
	end := at + len(ours) // behind it words may stand that say something of no machine
	if !found || !strings.HasPrefix(string(text[at:]), ours) || end < len(text) && !netrcBlank(text[end]) {
		return false, nil
	}
	if n.Before == "" && end < len(text) && text[end] == '\n' {
		end++ // it came with our entry
	}
	text = splice(text, at, end, n.Before)
	if n.Fresh && len(text) == 0 {
		if err := os.Remove(n.File); err != nil {
			return false, fmt.Errorf("removing %s: %w", n.File, err)
		}
		return true, nil
	}
	return true, replaceFile(n.File, text)
}

func splice(text []byte, at, end int, middle string) []byte {
	return bytes.Join([][]byte{text[:at], []byte(middle), text[end:]}, nil)
}

// netrcPassword is what the go command would present to a machine: the first whole entry's password, or "".
func netrcPassword(text []byte, machine string) string {
	at, end, _ := findMachine(text, machine)
	for rest := strings.Fields(string(text[at:end])); len(rest) > 1; rest = rest[1:] {
		if rest[0] == "password" {
			return rest[1]
		}
	}
	return ""
}

// findMachine finds the first entry of a machine that counts: from the word machine to its last value. What follows, a
// comment or a blank, is nobody's. A default entry ends the search; the body of a macro, which ends at an empty line, and
// comments are passed over. The same grammar as the go command's, which reads a comment in pairs of words.
func findMachine(text []byte, machine string) (at, end int, found bool) {
	for pos := 0; ; {
		from, to := netrcWord(text, pos)
		switch word := string(text[from:to]); {
		case word == "" || word == "default":
			return 0, 0, false
		case word[0] == '#':
			pos = skipPast(text, to, "\n")
		case word == "macdef":
			pos = skipPast(text, to, "\n\n")
		case word == "machine":
			nameFrom, nameTo := netrcWord(text, to)
			pos = entryEnd(text, nameTo)
			if string(text[nameFrom:nameTo]) == machine {
				return from, pos, true
			}
		default:
			pos = to
		}
	}
}

// entryEnd passes over the pairs that say something of a machine.
func entryEnd(text []byte, end int) int {
	for {
		from, to := netrcWord(text, end)
		switch string(text[from:to]) {
		case "login", "password", "account", "port":
			_, end = netrcWord(text, to)
		default:
			return end
		}
	}
}

// netrcWord is the word at or behind a place: where it begins and ends. At the end of the text it is empty.
func netrcWord(text []byte, at int) (from, to int) {
	for at < len(text) && netrcBlank(text[at]) {
		at++
	}
	to = at
	for to < len(text) && !netrcBlank(text[to]) {
		to++
	}
	return at, to
}

func netrcBlank(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

func skipPast(text []byte, at int, mark string) int {
	if n := bytes.Index(text[at:], []byte(mark)); n >= 0 {
		return at + n + len(mark)
	}
	return len(text)
}
