package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway"
	"github.com/headgate/headgate/gateway/mirror"
)

func mirrorCommand(file *string) *cobra.Command {
	return group("mirror", "care for the mirror: import, export, prefetch, verify, gc, quarantine, purge",
		"  headgate mirror import ~/go/pkg/mod\n  headgate mirror prefetch --from go.sum\n  headgate mirror gc --max-bytes 200GiB --dry-run",
		mirrorImportCommand(file), mirrorExportCommand(file), mirrorPrefetchCommand(file), mirrorVerifyCommand(file),
		mirrorCollectCommand(file), mirrorQuarantineCommand(file), mirrorReleaseCommand(file), mirrorPurgeCommand(file))
}

// mirrorRemote is a remote whose verbs need the mirror where no gateway runs.
func mirrorRemote(file *string) remote {
	return remote{config: file, leaves: []leaf{(*app).openMirror}}
}

const onItsMachine = `

Paths are read and written by the gateway, on its machine and as its user, so this verb goes over the socket alone.`

// local makes a path that the gateway can use; one cannot be sent to a gateway far away.
func (o *remote) local(what, path string) (string, error) {
	if o.url != "" {
		return "", &useError{fmt.Errorf("%s %s is a path on the gateway's machine; run this there, without --url", what, path)}
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("finding %s: %w", path, err)
	}
	return abs, nil
}

func mirrorImportCommand(file *string) *cobra.Command {
	o := mirrorRemote(file)
	var q gateway.ImportRequest
	var asJSON bool
	cmd := &cobra.Command{
		Use: "import SOURCE", Short: "take modules in from a module cache, a store of Athens, a file:// GOPROXY or a bundle",
		Long: `import takes in what SOURCE has: a GOMODCACHE (or its cache/download), the disk store of Athens, the folder of a
file:// GOPROXY, or a bundle that export made. Each file is verified like one from an upstream: zip rules, hashes and the
checksum database; a .ziphash is never believed. What does not verify is listed, and the rest goes on; a bundle is taken in
whole or not at all. Private modules go into the private store, and no database is asked about them.

Checksum records that the source carries (cache/download/sumdb) are used, once they are proved; with --offline, and for a
bundle, nobody is asked beyond that. Run it again to go on where it was stopped.` + onItsMachine,
		Example: "  headgate mirror import ~/go/pkg/mod\n  headgate mirror import /srv/athens --modules 'github.com/*'\n  headgate mirror import bundle.tar.zst",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if q.Source, err = o.local("SOURCE", args[0]); err != nil {
				return err
			}
			return o.care(cmd, careCall{path: "import", in: q, verb: "imported", noun: "versions", asJSON: asJSON})
		},
	}
	cmd.Flags().StringSliceVar(&q.Modules, "modules", nil, "module `PATTERNS` as in GOPRIVATE (default: all)")
	cmd.Flags().BoolVar(&q.Offline, "offline", false, "ask no checksum database; what cannot be proved from SOURCE and the store is not taken in")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON")
	o.flags(cmd)
	return cmd
}

func mirrorExportCommand(file *string) *cobra.Command {
	o := mirrorRemote(file)
	var q gateway.ExportRequest
	var from []string
	var all, asJSON bool
	cmd := &cobra.Command{
		Use: "export --out BUNDLE", Short: "write modules and their checksum proofs into a bundle, for an air gap",
		Long: `export writes what is stored of the named modules into one file: .info, .mod and .zip in the layout of a file://
GOPROXY, the records, tiles and signed head that prove them, of the public checksum database and of our own, and a manifest.
On the other side ` + "`headgate mirror import BUNDLE`" + ` needs no network. BUNDLE ends in .tar, .tar.gz or .tar.zst.

To prove private modules there, and to serve this gateway's own checksum database, set mirror.origin_sumdb to the GOSUMDB
line that ` + "`headgate serve`" + ` prints here. What is wanted and not stored is listed, and the bundle has the rest.` + onItsMachine,
		Example: "  headgate mirror export --from go.sum --out shop.tar.zst\n  headgate mirror export --modules 'golang.org/x/*' --out x.tar\n  headgate mirror export --all --private --out all.tar.gz",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if !all && len(from) == 0 && len(q.Modules) == 0 {
				return &useError{errors.New("nothing is named; want --from go.sum, --modules PATTERNS or --all")}
			}
			if q.Out == "" {
				return &useError{errors.New("--out is missing: it names the bundle to write")}
			}
			if q.Out, err = o.local("--out", q.Out); err != nil {
				return err
			}
			if len(from) > 0 {
				if q.Versions, err = readWanted(from); err != nil {
					return err
				}
			}
			return o.care(cmd, careCall{path: "export", in: q, verb: "exported", noun: "versions", asJSON: asJSON})
		},
	}
	cmd.Flags().StringVar(&q.Out, "out", "", "`FILE` to write, which must not be there")
	cmd.Flags().StringSliceVar(&q.Modules, "modules", nil, "module `PATTERNS` as in GOPRIVATE")
	cmd.Flags().StringSliceVar(&from, "from", nil, "go.sum, go.mod or list `FILE` that names the versions; may be repeated")
	cmd.Flags().BoolVar(&all, "all", false, "all that is stored")
	cmd.Flags().BoolVar(&q.Private, "private", false, "private modules as well")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON")
	o.flags(cmd)
	return cmd
}

func mirrorPrefetchCommand(file *string) *cobra.Command {
	o := mirrorRemote(file)
	var from []string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "prefetch [MODULE@VERSION...]", Short: "bring versions in before anybody asks for them",
		Long: `prefetch fetches and verifies what is not stored yet of the named versions, and ends the freshness of their modules'
lists. Policy is not asked, since nothing is given to anybody. Files are read here: go.sum (of a version with a go.mod line
alone the .mod alone is fetched), go.mod, or a list with MODULE@VERSION in each line. Run it again to go on where it was stopped.`,
		Example: "  headgate mirror prefetch --from go.sum\n  headgate mirror prefetch golang.org/x/mod@v0.20.0",
		Args:    arguments(cobra.ArbitraryArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := readWanted(from)
			if err != nil {
				return err
			}
			for _, arg := range args {
				w, err := parseWanted(arg)
				if err != nil {
					return err
				}
				all = append(all, w)
			}
			if len(all) == 0 {
				return &useError{errors.New("no version is named; want MODULE@VERSION or --from FILE")}
			}
			return o.care(cmd, careCall{path: "prefetch", in: gateway.PrefetchRequest{Versions: all}, verb: "fetched", noun: "versions", asJSON: asJSON})
		},
	}
	cmd.Flags().StringSliceVar(&from, "from", nil, "go.sum, go.mod or list `FILE`; may be repeated")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON")
	o.flags(cmd)
	return cmd
}

func mirrorVerifyCommand(file *string) *cobra.Command {
	o := mirrorRemote(file)
	var q gateway.ScrubRequest
	var rate string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "verify", Short: "read every stored file again and check its hashes",
		Long: `verify reads every file of both stores and holds it against the checksum record, what was noted when it came in, and
what stands beside it. Each bad file is named and recorded. With --repair bad files are moved aside, into .aside in the store:
they are not served any more, and the next request fetches them anew. Exit code 1 says that something is bad.`,
		Example: "  headgate mirror verify\n  headgate mirror verify --rate 50MiB --repair",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if q.BytesPerSecond, err = parseBytes("--rate", rate); err != nil {
				return err
			}
			return o.care(cmd, careCall{path: "verify", in: q, verb: "checked", noun: "files", asJSON: asJSON})
		},
	}
	cmd.Flags().StringVar(&rate, "rate", "", "read at most so many `BYTES` a second, as in 50MiB (default: no limit)")
	cmd.Flags().BoolVar(&q.Repair, "repair", false, "move bad files aside")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON")
	o.flags(cmd)
	return cmd
}

func mirrorCollectCommand(file *string) *cobra.Command {
	o := mirrorRemote(file)
	var q gateway.CollectRequest
	var limit string
	var age time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use: "gc", Short: "remove what was not used for longest",
		Long: `gc removes versions until the store holds at most --max-bytes, and those that were not used for --max-age; without
either the limits are mirror.max_bytes and mirror.max_age, which the running gateway also keeps by itself. What is in use or in
quarantine stays, private modules stay unless --private, and checksum records and tiles stay always. A version that was removed
may come back with the same bytes alone.`,
		Example: "  headgate mirror gc --dry-run\n  headgate mirror gc --max-bytes 200GiB --max-age 2160h",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if q.MaxBytes, err = parseBytes("--max-bytes", limit); err != nil {
				return err
			}
			q.Seconds = int64(age.Seconds())
			verb := "removed"
			if q.DryRun {
				verb = "would remove"
			}
			return o.care(cmd, careCall{path: "gc", in: q, verb: verb, noun: "versions", asJSON: asJSON})
		},
	}
	cmd.Flags().StringVar(&limit, "max-bytes", "", "`BYTES` that may stay, as in 200GiB")
	cmd.Flags().DurationVar(&age, "max-age", 0, "`DURATION` after which an unused version goes, as in 2160h")
	cmd.Flags().BoolVar(&q.Private, "private", false, "private modules as well")
	cmd.Flags().BoolVar(&q.DryRun, "dry-run", false, "list what would go, and remove nothing")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON")
	o.flags(cmd)
	return cmd
}

func mirrorQuarantineCommand(file *string) *cobra.Command {
	o := mirrorRemote(file)
	var reason string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "quarantine [MODULE@VERSION --reason TEXT]", Short: "stop a version, or list those that are stopped",
		Long: `quarantine stops a version from the next request on: .info, .mod and .zip are refused with 403 and the reason, list and
latest leave it out. It lasts until release, through restarts. Without a version it lists those that are stopped.`,
		Example: "  headgate mirror quarantine example.com/m@v1.2.3 --reason 'CVE-2026-1, see SEC-77'\n  headgate mirror quarantine",
		Args:    arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return listQuarantine(cmd, &o, asJSON)
			}
			return o.version(cmd, "quarantine", args[0], reason, true, asJSON)
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "`TEXT` that developers and the record get")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	o.flags(cmd)
	return cmd
}

func mirrorReleaseCommand(file *string) *cobra.Command {
	o := mirrorRemote(file)
	var reason string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "release MODULE@VERSION", Short: "let a version out of quarantine",
		Long:    "release lets a version that quarantine stopped be served again, from the next request on.",
		Example: "  headgate mirror release example.com/m@v1.2.3 --reason 'false alarm'",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.version(cmd, "release", args[0], reason, false, asJSON)
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "`TEXT` for the record")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	o.flags(cmd)
	return cmd
}

func mirrorPurgeCommand(file *string) *cobra.Command {
	o := mirrorRemote(file)
	var reason string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "purge MODULE@VERSION --reason TEXT", Short: "remove a version's files from the stores",
		Long: `purge removes the files of a version from the public and the private store, and from memory, at once. Its checksum
records stay, so that it can come back with the same bytes alone; quarantine keeps it from coming back.`,
		Example: "  headgate mirror purge example.com/m@v1.2.3 --reason 'licence'",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.version(cmd, "purge", args[0], reason, true, asJSON)
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "`TEXT` for the record")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	o.flags(cmd)
	return cmd
}

// version makes the call of a verb on one version.
func (o *remote) version(cmd *cobra.Command, verb, arg, reason string, needReason, asJSON bool) error {
	w, err := parseWanted(arg)
	if err != nil {
		return err
	}
	if needReason && reason == "" {
		return &useError{fmt.Errorf("--reason is missing: it stands in the record; see %s --help", cmd.CommandPath())}
	}
	var answer json.RawMessage
	if err := o.once(cmd, http.MethodPost, "/-/api/v1/mirror/"+verb, gateway.VersionRequest{Module: w.Path, Version: w.Version, Reason: reason}, &answer); err != nil {
		return err
	}
	if asJSON {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(answer)
	}
	name := w.Path + "@" + w.Version
	text := map[string]string{
		"quarantine": name + " is stopped from the next request on; `headgate mirror release " + name + "` lets it out\n",
		"release":    name + " is served again\n",
	}[verb]
	if verb == "purge" {
		var report mirror.CareReport
		if err := json.Unmarshal(answer, &report); err != nil {
			return fmt.Errorf("reading the gateway's answer: %w", err)
		}
		text = fmt.Sprintf("%s: %d files removed, %s\n", name, report.Files, bytesText(report.Bytes))
	}
	_, err = io.WriteString(cmd.OutOrStdout(), text)
	return err
}

func listQuarantine(cmd *cobra.Command, o *remote, asJSON bool) error {
	var answer struct {
		Quarantined []mirror.Quarantined `json:"quarantined"`
	}
	if err := o.once(cmd, http.MethodGet, "/-/api/v1/mirror/quarantine", nil, &answer); err != nil {
		return err
	}
	if asJSON {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(answer.Quarantined)
	}
	t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "VERSION\tSINCE\tREASON")
	for _, q := range answer.Quarantined {
		fmt.Fprintf(t, "%s@%s\t%s\t%s\n", q.Path, q.Version, q.Since.Format(time.DateTime), audit.EscapeTerminal(q.Reason))
	}
	return t.Flush()
}

// parseBytes reads a number with an optional unit: KB, MB, GB, TB or KiB, MiB, GiB, TiB.
func parseBytes(flag, text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	number, factor := strings.TrimSuffix(text, "B"), int64(1)
	unit := int64(1000)
	if n, ok := strings.CutSuffix(number, "i"); ok {
		number, unit = n, 1024
	}
	for i, letter := range []string{"K", "M", "G", "T"} {
		if n, ok := strings.CutSuffix(number, letter); ok {
			number = n
			for range i + 1 {
				factor *= unit
			}
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n <= 0 || n > (1<<62)/factor {
		return 0, &useError{fmt.Errorf("%s %s: want a number of bytes, as in 500MB or 200GiB", flag, text)}
	}
	return n * factor, nil
}

// bytesText is a number of bytes for people.
func bytesText(n int64) string {
	for _, u := range []struct {
		size int64
		name string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= u.size {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.size), u.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}
