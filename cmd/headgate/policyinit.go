package main

import (
	"encoding/json"
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

	"github.com/spf13/cobra"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/policies"
)

const policyManifest = `# What this bundle is.
name: company
library: %s
owners: [platform]
`

const policyReadme = `# Policy of our Go modules

- config/teams.yaml: who may use what, and how strict
- config/rules.yaml: which versions are fit
- config/waivers.yaml: what is forgiven, to whom, until when
- tests/: decisions that this bundle must give; who changes a rule changes them with it

Before each change is merged: headgate policy test .
`

// A newPolicy is what init wrote.
type newPolicy struct {
	Folder  string   `json:"folder"`
	Library string   `json:"library"`
	Files   []string `json:"files"`
}

func policyInitCommand() *cobra.Command {
	var withRego, asJSON bool
	cmd := &cobra.Command{
		Use: "init DIR", Short: "write a policy repository from the default bundle",
		Long: `init writes YAML, golden decisions and a README into DIR, which must be empty or not there yet. The Rego stays in
the binary and improves with it; --rego writes it too, to be changed, and from then on it is the repository's own.`,
		Example: "  headgate policy init go-policy\n  headgate policy test go-policy",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			p := newPolicy{Folder: args[0], Library: "default"}
			if withRego {
				p.Library = "own"
			}
			if err := p.write(); err != nil {
				return fmt.Errorf("writing a policy repository: %w", err)
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(p)
			}
			return p.print(cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&withRego, "rego", false, "write the Rego and its tests, too")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// write makes the files. What is there already is never touched.
func (p *newPolicy) write() (err error) {
	files, err := policyFiles(p.Library)
	if err != nil {
		return err
	}
	if err := emptyFolder(p.Folder); err != nil {
		return err
	}
	root, err := os.OpenRoot(p.Folder)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	p.Files = slices.Sorted(maps.Keys(files))
	for _, name := range p.Files {
		if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		_, err = f.Write(files[name])
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// policyFiles are the files of a new repository.
func policyFiles(library string) (map[string][]byte, error) {
	files := map[string][]byte{}
	err := fs.WalkDir(policies.FS, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || library == "default" && strings.HasSuffix(name, ".rego") {
			return err
		}
		files[name], err = policies.FS.ReadFile(name)
		return err
	})
	files["bundle.yaml"] = fmt.Appendf(nil, policyManifest, library)
	files["README.md"] = []byte(policyReadme)
	return files, err
}

// emptyFolder makes the folder, or finds it empty. A link is refused: what it names is not what was asked for.
func emptyFolder(dir string) error {
	info, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return os.MkdirAll(dir, 0o755)
	}
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		return fmt.Errorf("%s is a symbolic link; name the folder itself", dir)
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is no folder", dir)
	}
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) > 0 {
		err = fmt.Errorf("%s is not empty: it holds %q; want an empty folder, or one that is not there yet", dir, entries[0].Name())
	}
	return err
}

func (p *newPolicy) print(w io.Writer) error {
	dir := audit.EscapeTerminal(p.Folder)
	full, err := filepath.Abs(p.Folder)
	if err != nil {
		return fmt.Errorf("finding %s: %w", p.Folder, err)
	}
	_, err = fmt.Fprintf(w, `wrote %d files to %s
next: edit %s, then
  headgate policy test %s
and let the gateway read it:
  policy: {source: folder, path: %s}
`, len(p.Files), dir, filepath.Join(dir, "config", "teams.yaml"), dir, audit.EscapeTerminal(full))
	return err
}
