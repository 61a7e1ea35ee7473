package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/module"
)

// A module of many versions, half of which policy hides.
const (
	manyPath     = "bench.test/many"
	manyVersions = 2000
	listRounds   = 200 // warm lists of a run
	listTries    = 5
)

func manyVersion(i int) module.Version {
	return module.Version{Path: manyPath, Version: fmt.Sprintf("v1.%d.0", i)}
}

// A policySpeed is what `headgate policy bench` says of a bundle.
type policySpeed struct {
	ActivateNS int64 `json:"activate_ns"`
	HeapBytes  int64 `json:"heap_bytes"`
	Rows       []struct {
		Entry  string  `json:"entry"`
		Cached bool    `json:"cached"`
		P50NS  int64   `json:"p50_ns"`
		P99NS  int64   `json:"p99_ns"`
		Allocs float64 `json:"allocs"`
	} `json:"rows"`
	ListColdNS int64 `json:"list_cold_ns"`
	ListWarmNS int64 `json:"list_warm_ns"`
}

// decisions prints the rows of policy: single decisions (BENCH: B10), lists (B11) and activation.
func (b *benchmark) decisions(ctx context.Context) error {
	out, err := b.gate.run(ctx, "policy", "bench", "--json", "--budget", "1h", "--samples", "2000", filepath.Join(b.dir, "policy"))
	if err != nil {
		return fmt.Errorf("measuring policy: %w: %s", err, out)
	}
	var speed policySpeed
	if err := json.Unmarshal([]byte(out), &speed); err != nil {
		return fmt.Errorf("reading what policy bench printed: %w", err)
	}
	cold, warm, err := b.lists(ctx)
	if err != nil {
		return err
	}
	speed.print(b.t)
	fmt.Fprintf(b.t.out, "| B11 list of %d versions, half of them hidden, through the gateway: first after a start · warm | %s ms · %s ms | | | 60 ms · 1 ms |\n",
		manyVersions, milliseconds(cold), milliseconds(warm))
	return nil
}

func (s *policySpeed) print(t *teller) {
	fmt.Fprintf(t.out, "\n| Policy of %d teams and %d rules | p50 | p99 | allocations | target |\n|---|---|---|---|---|\n", benchTeams, benchRules)
	for _, r := range s.Rows {
		how, target := "evaluated", "50 µs · 500 µs"
		if r.Cached {
			how, target = "out of the cache", "0.1 µs · 1 µs · 0"
		}
		fmt.Fprintf(t.out, "| B10 %s, %s | %.2f µs | %.2f µs | %.0f | %s |\n", r.Entry, how, float64(r.P50NS)/1e3, float64(r.P99NS)/1e3, r.Allocs, target)
	}
	fmt.Fprintf(t.out, "| B11 %d versions judged: cold · warm | %s ms · %s ms | | | 60 ms · 1 ms |\n",
		manyVersions, milliseconds(time.Duration(s.ListColdNS)), milliseconds(time.Duration(s.ListWarmNS)))
	fmt.Fprintf(t.out, "| activation, while the one before serves: time · memory that stays | %d ms · %d MB | | | |\n", s.ActivateNS/1e6, s.HeapBytes>>20)
}

// lists asks for a long list, which the store has, once after a start and then again and again. Medians.
func (b *benchmark) lists(ctx context.Context) (cold, warm time.Duration, err error) {
	var colds, warms []time.Duration
	for round := range benchRuns + 1 {
		took, err := b.list(ctx)
		if err != nil {
			return 0, 0, err
		}
		if round > 0 { // the first brought the list from upstream
			colds = append(colds, took)
		}
		for range listRounds {
			if took, err = b.list(ctx); err != nil {
				return 0, 0, err
			}
			warms = append(warms, took)
		}
		if round == benchRuns {
			break
		}
		err = b.gate.process.stop()
		if err == nil {
			err = b.gate.start(ctx, "warn")
		}
		if err == nil {
			_, err = b.gate.get(ctx, "/"+tiny.Path+"/@v/list", b.headgate.token) // its handshake is none of the list's
		}
		if err != nil {
			return 0, 0, err
		}
	}
	slices.Sort(colds)
	slices.Sort(warms)
	return colds[len(colds)/2], warms[len(warms)/2], nil
}

// list asks until there is an answer: on a machine that others keep busy one of thousands of evaluations may not get the
// time that it must have, and the gateway then gives no decision. Half of the versions must come.
func (b *benchmark) list(ctx context.Context) (time.Duration, error) {
	for range listTries {
		start := time.Now()
		got, err := b.gate.get(ctx, "/"+manyPath+"/@v/list", b.headgate.token)
		took := time.Since(start)
		if err == nil && got.header.Get("Headgate-Code") == "POLICY-ERROR" {
			b.t.say("A list got no decision in time.")
			continue
		}
		if n := strings.Count(got.body, "\n"); err == nil && (got.status != http.StatusOK || n != manyVersions/2) {
			err = fmt.Errorf("%w: the list answers %d with %d versions, want %d: %.200s", errClaim, got.status, n, manyVersions/2, got.body)
		}
		if err != nil {
			return 0, fmt.Errorf("asking for a long list: %w", err)
		}
		return took, nil
	}
	return 0, fmt.Errorf("asking for a long list: %w: %d times there was no decision", errClaim, listTries)
}

// writeLargePolicy makes a folder policy in dir, of the size of a large company's.
func writeLargePolicy(dir string) error {
	var teams, rules strings.Builder
	teams.WriteString("teams:\n  everyone: {profile: standard, public: true}\n")
	for i := range benchTeams {
		fmt.Fprintf(&teams, "  t%03d: {profile: standard, groups: [g%03d], deny: [denied.test/p%03d]}\n", i, i, i)
	}
	rules.WriteString("profiles: [open, standard, strict]\ntoolchains: [{versions: \">=1.21.0\"}]\nrules:\n")
	fmt.Fprintf(&rules, "  - {id: old, code: RULE, match: {prefix: [%s], versions: \"<%s\"}, effect: deny, remedy: none}\n",
		manyPath, strings.TrimPrefix(manyVersion(manyVersions/2).Version, "v"))
	for i := range benchRules - 1 {
		fmt.Fprintf(&rules, "  - {id: r%05d, code: RULE, match: {prefix: [ruled.test/p%05d]}, effect: deny, remedy: none}\n", i, i)
	}
	if err := os.MkdirAll(filepath.Join(dir, "policy", "config"), 0o700); err != nil {
		return fmt.Errorf("making the policy folder: %w", err)
	}
	for name, text := range map[string]string{
		"bundle.yaml": "name: bench\nlibrary: default\nowners: [platform]\n", "config/teams.yaml": teams.String(),
		"config/rules.yaml": rules.String(), "config/waivers.yaml": "waivers: []\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, "policy", name), []byte(text), 0o600); err != nil {
			return fmt.Errorf("writing the policy: %w", err)
		}
	}
	return nil
}
