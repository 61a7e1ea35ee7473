package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// errClaim is matched by a claim that does not hold.
var errClaim = errors.New("a claim does not hold")

// A teller prints the story: numbered steps, sentences, indented output of commands.
type teller struct {
	out      io.Writer
	terminal bool
	steps    int
}

func newTeller(out io.Writer) *teller {
	f, ok := out.(*os.File)
	return &teller{out: out, terminal: ok && term.IsTerminal(int(f.Fd()))}
}

// step begins the next chapter.
func (t *teller) step(title string) {
	t.steps++
	fmt.Fprintf(t.out, "\n%d. %s\n", t.steps, title)
}

func (t *teller) say(format string, args ...any) {
	fmt.Fprintf(t.out, "   "+format+"\n", args...)
}

// shows prints what a command printed, indented.
func (t *teller) shows(text string) {
	for line := range strings.Lines(strings.TrimRight(text, "\n")) {
		fmt.Fprintln(t.out, "     | "+strings.TrimRight(line, "\n"))
	}
}

// claims says a sentence that was checked, or ends the story with it.
func (t *teller) claims(holds bool, format string, args ...any) error {
	sentence := fmt.Sprintf(format, args...)
	if !holds {
		return fmt.Errorf("%w: %s", errClaim, sentence)
	}
	t.say("ok: %s", sentence)
	return nil
}

// during does something that takes long. On a terminal a line tells how far it is.
func (t *teller) during(ctx context.Context, what string, far func() string, do func(context.Context) error) error {
	if !t.terminal {
		return do(ctx)
	}
	start := time.Now()
	done := make(chan error, 1)
	go func() { done <- do(ctx) }()
	tick := time.NewTicker(time.Second / 2)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			fmt.Fprint(t.out, "\r\x1b[K")
			return err
		case <-tick.C:
			fmt.Fprintf(t.out, "\r\x1b[K   %s: %s, %.0f s", what, far(), time.Since(start).Seconds())
		}
	}
}

// shorten cuts a line to the width of a page.
func shorten(line string, width int) string {
	if len(line) <= width {
		return line
	}
	return line[:width-3] + "..."
}

// seconds prints a duration for people.
func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
