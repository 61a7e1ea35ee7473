package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// goNetrc is what the go command presents to a machine: line by line, word pair by word pair, the first whole entry
// (cmd/go/internal/auth). It stops at a default that ends a line, and reads on behind one that does not.
func goNetrc(text, machine string) string {
	var name, login, password string
	macro := false
	for line := range strings.SplitSeq(text, "\n") {
		if macro {
			macro = line != ""
			continue
		}
		words := strings.Fields(line)
		i := 0
		for ; i < len(words)-1; i += 2 {
			switch words[i] {
			case "machine":
				name, login, password = words[i+1], "", ""
			case "login":
				login = words[i+1]
			case "password":
				password = words[i+1]
			case "macdef":
				macro = true
			}
			if name != "" && login != "" && password != "" {
				if name == machine {
					return password
				}
				name, login, password = "", "", ""
			}
		}
		if i < len(words) && words[i] == "default" {
			break
		}
	}
	return ""
}

// What stands in a .netrc is nobody's business but the entry of the machine: after set the go command finds ours, after
// undo every byte is as it was.
func FuzzNetrc(f *testing.F) {
	for _, text := range []string{
		"", "\n", "machine go.example login a password b\n", "machine go.example\n\tlogin a\n\tpassword b\n\nmachine x login y password z",
		"default login anonymous password x\n", "macdef init\nmachine go.example login a password b\n\nmachine go.example login c password d # e\n",
		"# machine go.example login no password no\nmachine go.example password only\n", "machine", "machine go.example", "machine machine login login",
		"login machine password go.example", "machine go.example login a password b machine go.example login c password d\r\n", "macdef x\nno end",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		file := filepath.Join(t.TempDir(), "netrc")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		change, err := setNetrc(file, "go.example", "hg_hu_secret")
		if err != nil {
			t.Fatal(err)
		}
		set, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := netrcPassword(set, "go.example"); got != "hg_hu_secret" {
			t.Errorf("after setNetrc of %q the password is %q in %q", text, got, set)
		}
		if done, err := change.undo("go.example", "hg_hu_SECRET"); done || err != nil {
			t.Errorf("undo of another's entry: %v %v", done, err)
		}
		if done, err := change.undo("go.example", "hg_hu_secret"); !done || err != nil {
			t.Errorf("undo: %v %v", done, err)
		}
		if got, err := os.ReadFile(file); err != nil || string(got) != text {
			t.Errorf("after undo %q, %v, want %q", got, err, text)
		}
	})
}

// As the go command reads it, too: ours for our machine, and for every other what it was.
func TestNetrcAsGoReadsIt(t *testing.T) {
	for name, text := range map[string]string{
		"none": "", "others": "machine a.example login x password y\n", "before others": "machine go.example login o password p\nmachine a.example login x password y\n",
		"after a comment": "# of mine, you see\nmachine go.example login o password p\nmachine a.example login x password y",
		"split in lines":  "machine a.example\nlogin x\npassword y\nmachine go.example\nlogin o\npassword p\n",
		"macro":           "machine a.example login x password y macdef m\nput z\n\nmachine go.example login o password p\n",
		"default":         "machine a.example login x password y\ndefault login o password p\n",
		"twice":           "machine go.example login o password p\nmachine go.example login q password r\nmachine a.example login x password y\n",
	} {
		t.Run("C29 "+name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "netrc")
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := setNetrc(file, "go.example", "hg_hu_secret"); err != nil {
				t.Fatal(err)
			}
			set, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got := goNetrc(string(set), "go.example"); got != "hg_hu_secret" {
				t.Errorf("the go command presents %q:\n%s", got, set)
			}
			if got, want := goNetrc(string(set), "a.example"), goNetrc(text, "a.example"); got != want {
				t.Errorf("the go command presents %q to another, want %q:\n%s", got, want, set)
			}
		})
	}
}

// The file is found as the go command finds it, and a link to it stays a link.
func TestNetrcFile(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("NETRC", "")
	if name, err := netrcFile(); err != nil || name != filepath.Join(home, ".netrc") {
		t.Errorf("netrcFile() = %s, %v", name, err)
	}
	target := filepath.Join(t.TempDir(), "target")
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(home, "link")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NETRC", link)
	name, err := netrcFile()
	if err != nil || name != target {
		t.Errorf("netrcFile() behind a link = %s, %v, want %s", name, err, target)
	}
	if _, err := setNetrc(name, "go.example", "p"); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is gone: %v %v", info, err)
	}
}
