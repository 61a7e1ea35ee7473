package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// round measures each way once, in turn: a machine's speed drifts, a ratio less.
func (d *downloads) round(ctx context.Context) error {
	for _, sumdb := range []string{publicSumdb, "off"} {
		on := map[bool]string{true: " off", false: ""}[sumdb == "off"]
		if err := d.measure(ctx, d.archive.from("direct"+on, sumdb)); err != nil {
			return err
		}
		if err := d.fresh(ctx, d.fromArchive()); err != nil {
			return err
		}
		if err := d.measure(ctx, d.through("cold"+on, sumdb)); err != nil {
			return err
		}
		if err := d.measure(ctx, d.through("warm"+on, sumdb)); err != nil {
			return err
		}
	}
	return d.measure(ctx, d.nginx.from("nginx off", "off"))
}

// measure runs a way once, and notes its time and what the archive was asked for meanwhile.
func (d *downloads) measure(ctx context.Context, w way) (err error) {
	var run goRun
	d.traffic[w.name], err = d.during(func() error {
		run, err = d.goes(ctx, w, "mod", "download")
		return err
	})
	if err != nil {
		return err
	}
	d.times[w.name] = append(d.times[w.name], run)
	d.t.say("%-10s %s (CPU: client %s, gateway %s)", w.name, seconds(run.took), seconds(run.client), seconds(run.gateway))
	return nil
}

// middle is the median of a way's runs.
func (d *downloads) middle(name string) goRun {
	runs := slices.SortedFunc(slices.Values(d.times[name]), byTime)
	return runs[len(runs)/2]
}

func byTime(a, b goRun) int { return cmp.Compare(a.took, b.took) }

// table prints the medians and what the gateway may cost (BENCH: B6 and B7).
func (d *downloads) table() {
	fmt.Fprintf(d.t.out, "\n| go mod download, %d modules | checksum database | time | CPU client · gateway | beside | ratio | target |\n|---|---|---|---|---|---|---|\n", d.modules)
	for _, row := range []struct {
		what, sumdb, name, beside, target string
	}{
		{"straight from the archive", "on", "direct", "", ""},
		{"straight from the archive", "off", "direct off", "", ""},
		{"nginx, static files", "off", "nginx off", "", ""},
		{"B6 through the gateway, cold", "on", "cold", "direct", "1.10"},
		{"B6 through the gateway, cold", "off", "cold off", "direct off", "1.50"},
		{"B7 through the gateway, warm", "off", "warm off", "nginx off", "1.10"},
		{"B7 through the gateway, warm", "on", "warm", "nginx off", "1.20"},
		{"through the gateway, warm", "on", "warm", "direct", ""},
		{"through the gateway, warm", "off", "warm off", "direct off", ""},
	} {
		runs, m := d.times[row.name], d.middle(row.name)
		beside, by := "", ""
		if row.beside != "" {
			other := d.middle(row.beside)
			beside, by = seconds(other.took), fmt.Sprintf("%.2f", ratio(m.took, other.took))
		}
		gateway := "–"
		if row.beside != "" {
			gateway = seconds(m.gateway)
		}
		fmt.Fprintf(d.t.out, "| %s | %s | %s [%s–%s] | %s · %s | %s | %s | %s |\n", row.what, row.sumdb, seconds(m.took),
			seconds(slices.MinFunc(runs, byTime).took), seconds(slices.MaxFunc(runs, byTime).took), seconds(m.client), gateway, beside, by, row.target)
	}
	if len(d.real) == 0 {
		return
	}
	fmt.Fprintf(d.t.out, "| the machine's own upstream: B6 through the gateway, cold, once | on | %s | %s · %s | %s | %.2f | 1.10 |\n\n",
		seconds(d.real["cold"].took), seconds(d.real["cold"].client), seconds(d.real["cold"].gateway),
		seconds(d.real["direct"].took), ratio(d.real["cold"].took, d.real["direct"].took))
}

// A traffic is what the archive was asked for, and the bytes of modules that it sent.
type traffic struct {
	tally
	bytes int64
}

func (t traffic) String() string {
	return fmt.Sprintf("%s, %.1f MB of modules", t.tally, float64(t.bytes)/1e6)
}

// counted says what the archive was asked for: a cold download costs what a straight one does, a warm one nothing, and
// who asks for go.mod files alone causes no zip.
func (d *downloads) counted(ctx context.Context) error {
	d.t.step("What the archive was asked for")
	straight, cold, warm := d.traffic["direct"], d.traffic["cold"], d.traffic["warm"]
	d.t.say("straight:                  %s", straight)
	d.t.say("through the gateway, cold: %s", cold)
	part := float64(cold.bytes) / float64(straight.bytes)
	all, cached, err := d.gate.decisions(ctx)
	if err != nil {
		return err
	}
	d.t.say("policy:                    %d answers to a cold and a warm download, %.1f %% of them out of the cache", all, 100*float64(cached)/float64(max(all, 1)))
	err = errors.Join(
		d.t.claims(cold.zip == d.modules && part <= 1.02, "each zip was fetched once, and the bytes of modules are %.3f of straight (target 1.02)", part),
		d.t.claims(warm.all == 0, "warm, the archive was asked for nothing: %s", warm.tally),
		d.fresh(ctx, d.fromArchive()))
	if err != nil {
		return err
	}
	graph, err := d.during(func() error {
		_, err := d.goes(ctx, d.through("cold", publicSumdb), "mod", "graph")
		return err
	})
	if err != nil {
		return err
	}
	return d.t.claims(graph.zip == 0 && graph.mod >= d.modules, "go mod graph through a cold gateway: %s, no zip", graph.tally)
}

// during does something and gives what the archive was asked for meanwhile.
func (d *downloads) during(do func() error) (traffic, error) {
	before, err := os.Stat(d.log())
	if err == nil {
		err = do()
	}
	if err != nil {
		return traffic{}, err
	}
	log, err := os.ReadFile(d.log())
	if err != nil {
		return traffic{}, fmt.Errorf("reading the archive's log: %w", err)
	}
	log = log[before.Size():]
	asked, err := countLog(bytes.NewReader(log))
	if err != nil {
		return traffic{}, err
	}
	sum, err := moduleBytes(bytes.NewReader(log))
	return traffic{asked, sum}, err
}

// imported fills an empty gateway from the archive's files, as an administrator would from a module cache, and serves
// everything with nothing to ask.
func (d *downloads) imported(ctx context.Context) error {
	d.t.step("An import of the module cache")
	if err := d.fresh(ctx, "mirror: {upstreams: [\"off\"]}\n"); err != nil {
		return err
	}
	var bytes int64
	err := filepath.WalkDir(d.files, func(name string, e fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(name) != ".zip" {
			return err
		}
		info, err := e.Info()
		if err == nil {
			bytes += info.Size()
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("measuring the archive: %w", err)
	}
	start := time.Now()
	out, err := d.gate.run(ctx, "mirror", "import", "--offline", d.files)
	took := time.Since(start)
	if err != nil {
		return fmt.Errorf("importing: %w: %s", err, out)
	}
	d.t.shows(out)
	d.t.say("%.0f MB of zips in %s: %.0f MB/s", float64(bytes)/1e6, seconds(took), float64(bytes)/1e6/took.Seconds())
	served, err := d.during(func() error {
		_, err := d.goes(ctx, d.through("imported", publicSumdb), "mod", "download")
		return err
	})
	if err != nil {
		return err
	}
	return d.t.claims(served.all == 0, "all %d modules came from the import with the checksum database on, and there is no upstream to ask", d.modules)
}
