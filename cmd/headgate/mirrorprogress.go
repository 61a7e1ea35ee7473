package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/gateway"
	"github.com/headgate/headgate/gateway/mirror"
)

// A careCall is one long operation on the mirror, with the words for what it does.
type careCall struct {
	path   string
	in     any
	verb   string
	noun   string
	asJSON bool
}

// care makes a long call, shows how far it has come, and prints the report. Where something failed the error says so.
func (o *remote) care(cmd *cobra.Command, call careCall) (err error) {
	c, err := o.connect(cmd.Context())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	show := newProgressLine(cmd.ErrOrStderr(), call.noun)
	final, err := c.follow(cmd.Context(), "/-/api/v1/mirror/"+call.path, call.in, show.tell)
	show.end()
	if err != nil && cmd.Context().Err() != nil {
		return fmt.Errorf("stopped after %s; run it again to go on", show.done())
	}
	if err != nil {
		return err
	}
	switch {
	case call.asJSON:
		err = json.NewEncoder(cmd.OutOrStdout()).Encode(final)
	case final.Error == "" || final.Result.Done > 0:
		err = printCare(cmd.OutOrStdout(), call, final.Result, time.Since(show.begun))
	}
	if err != nil {
		return err
	}
	switch {
	case final.Error != "":
		return fmt.Errorf("%s did not come to its end: %s", cmd.CommandPath(), final.Error)
	case final.Result.Failed > 0:
		return fmt.Errorf("%d of %d %s failed", final.Result.Failed, max(final.Result.Total, final.Result.Done), call.noun)
	}
	return nil
}

// follow makes a call whose answer is a stream of events, and gives the last one.
func (c *client) follow(ctx context.Context, path string, in any, tell func(mirror.Progress)) (*gateway.CareEvent, error) {
	text, err := json.Marshal(in)
	if err != nil {
		return nil, fmt.Errorf("encoding the request: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("preparing the request: %w", err)
	}
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	patient := *c.http
	patient.Timeout = 0 // it lasts as long as there is work; the gateway tells how far it is
	resp, err := patient.Do(r)
	if err != nil {
		return nil, fmt.Errorf("asking the gateway: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		if err != nil {
			return nil, fmt.Errorf("reading the gateway's answer: %w", err)
		}
		if err = apiError(resp.Status, text); resp.StatusCode == http.StatusBadRequest {
			err = &useError{err}
		}
		return nil, err
	}
	for d := json.NewDecoder(resp.Body); ; {
		var e gateway.CareEvent
		if err := d.Decode(&e); err != nil {
			return nil, fmt.Errorf("reading how far the gateway is: %w; run it again to go on", err)
		}
		if e.Result != nil {
			return &e, nil
		}
		if e.Progress != nil {
			tell(*e.Progress)
		}
	}
}

// printCare says what was done: failures first, then one line.
func printCare(w io.Writer, call careCall, r *mirror.CareReport, took time.Duration) error {
	for _, x := range r.Listed {
		fmt.Fprintf(w, "%s@%s\t%s\tlast used %s\n", x.Path, x.Version, bytesText(x.Bytes), x.Used.Format(time.DateTime))
	}
	for _, f := range r.Failures {
		word := "failed"
		if f.Incident {
			word = "INCIDENT"
		}
		fmt.Fprintf(w, "%s: %s@%s %s: %s\n", word, f.Module, f.Version, f.File, audit.EscapeTerminal(f.Reason))
	}
	if more := r.Failed - int64(len(r.Failures)); more > 0 {
		fmt.Fprintf(w, "and %d more\n", more)
	}
	n := r.Versions
	if call.noun == "files" {
		n = r.Files
	}
	line := fmt.Sprintf("%s %d %s", call.verb, n, call.noun)
	if r.Had > 0 {
		line += fmt.Sprintf(", had %d", r.Had)
	}
	if r.Kept > 0 {
		line += fmt.Sprintf(", kept %d (private, in use or in quarantine)", r.Kept)
	}
	if r.Failed > 0 {
		line += fmt.Sprintf(", failed %d", r.Failed)
	}
	_, err := fmt.Fprintf(w, "%s: %s in %s (%s/s)\n", line, bytesText(r.Bytes), took.Round(time.Millisecond), bytesText(rate(r.Bytes, took)))
	return err
}

func rate(n int64, took time.Duration) int64 {
	return int64(float64(n) / max(took.Seconds(), 0.001))
}

// plainInterval is how often a line is printed where there is no terminal.
const plainInterval = 5 * time.Second

// A progressLine shows how far an operation has come: one line that is written over on a terminal, else one now and then.
type progressLine struct {
	w        io.Writer
	noun     string
	terminal bool
	begun    time.Time
	printed  time.Time
	last     mirror.Progress
}

func newProgressLine(w io.Writer, noun string) *progressLine {
	f, ok := w.(*os.File)
	return &progressLine{w: w, noun: noun, terminal: ok && term.IsTerminal(int(f.Fd())), begun: time.Now(), printed: time.Now()}
}

func (p *progressLine) tell(now mirror.Progress) {
	p.last = now
	switch {
	case p.terminal:
		fmt.Fprintf(p.w, "\r\x1b[K%s", p.line(time.Since(p.begun)))
	case time.Since(p.printed) >= plainInterval:
		p.printed = time.Now()
		fmt.Fprintln(p.w, p.line(time.Since(p.begun)))
	}
}

// line is the state in one line: how much of how much, how fast, and how long it will take.
func (p *progressLine) line(took time.Duration) string {
	text := p.done()
	text += fmt.Sprintf(", %s, %s/s", bytesText(p.last.Bytes), bytesText(rate(p.last.Bytes, took)))
	if p.last.Failed > 0 {
		text += fmt.Sprintf(", %d failed", p.last.Failed)
	}
	if p.last.Done > 0 && p.last.Total > p.last.Done {
		rest := time.Duration(float64(took) / float64(p.last.Done) * float64(p.last.Total-p.last.Done))
		text += ", " + rest.Round(time.Second).String() + " to go"
	}
	return text
}

// done is how much is done.
func (p *progressLine) done() string {
	if p.last.Total > 0 {
		return fmt.Sprintf("%d of %d %s", p.last.Done, p.last.Total, p.noun)
	}
	return fmt.Sprintf("%d %s", p.last.Done, p.noun)
}

// count shows how much of what has no bytes is done, on a terminal alone.
func (p *progressLine) count(done, total int) {
	p.last.Done, p.last.Total = int64(done), int64(total)
	if p.terminal {
		fmt.Fprintf(p.w, "\r\x1b[K%s", p.done())
	}
}

func (p *progressLine) end() {
	if p.terminal {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
