package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"sync"
	"time"
)

// ErrUnfit means that a backend breaks a promise that the store rests on.
var ErrUnfit = errors.New("backend is not fit for a store")

// Sizes and rounds of the self-test. The large object is one that is uploaded in parts.
const (
	probeRounds = 8
	probeSmall  = 512
	probeLarge  = 2*partBytes + 1
	probeTime   = 5 * time.Minute
)

// selfTest writes to the backend what only one of two writers may win, and
// looks at what can be seen. It leaves nothing behind.
func (s *Store) selfTest(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	dir := path.Join(temp, "probe-"+rand.Text())
	for round := range probeRounds {
		if err := s.probePublish(ctx, path.Join(dir, fmt.Sprint("small", round)), probeSmall); err != nil {
			return err
		}
	}
	if err := s.probePublish(ctx, path.Join(dir, "large"), probeLarge); err != nil {
		return err
	}
	for i := range probeRounds { // writers that by chance come one after the other prove nothing
		if err := s.probeSwap(ctx, path.Join(dir, fmt.Sprintf("swap-%d", i))); err != nil {
			return err
		}
	}
	return nil
}

// race lets both write at once and gives their errors; one that is lost is not an error.
func race(write func(i int) error, lost error) (won []int, err error) {
	var errs [2]error
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = write(i) })
	}
	wg.Wait()
	for i, e := range errs {
		switch {
		case e == nil:
			won = append(won, i)
		case !errors.Is(e, lost):
			err = errors.Join(err, e)
		}
	}
	return won, err
}

// probePublish lets two writers publish under one name at once, and a third one afterwards.
func (s *Store) probePublish(ctx context.Context, name string, size int) error {
	defer s.forget(ctx, name)
	var drafts [3]*Draft
	for i := range drafts {
		d, err := s.probe(size)
		if err != nil {
			return err
		}
		defer d.Discard()
		drafts[i] = d
	}
	what := fmt.Sprintf("of objects of %d bytes", size)
	seen, stop := s.watch(ctx, name, int64(size))
	won, err := race(func(i int) error { return s.backend.put(ctx, drafts[i], name, absent) }, fs.ErrExist)
	close(stop)
	switch half := <-seen; {
	case err != nil:
		return fmt.Errorf("testing publish-if-absent %s: %w", what, err)
	case len(won) != 1:
		return fmt.Errorf("%w: publish-if-absent %s: %d of 2 writers at once succeeded, want 1", ErrUnfit, what, len(won))
	case half != "":
		return fmt.Errorf("%w: whole objects %s: %s", ErrUnfit, what, half)
	}
	if err := s.backend.put(ctx, drafts[2], name, absent); !errors.Is(err, fs.ErrExist) {
		if err != nil {
			return fmt.Errorf("testing publish-if-absent %s: %w", what, err)
		}
		return fmt.Errorf("%w: publish-if-absent %s: another write succeeded afterwards", ErrUnfit, what)
	}
	return s.probeRead(ctx, name, drafts[won[0]])
}

// probe is a draft of size random bytes.
func (s *Store) probe(size int) (*Draft, error) {
	d, err := s.Draft()
	if err != nil {
		return nil, err
	}
	b := make([]byte, min(size, 1<<20))
	for left := size; left > 0; left -= len(b) {
		b = b[:min(left, len(b))]
		_, _ = rand.Read(b) // never fails
		if _, err := d.Write(b); err != nil {
			d.Discard()
			return nil, err
		}
	}
	return d, nil
}

// watch looks at a name until stop is closed, and says what it saw of it in another size than the whole.
func (s *Store) watch(ctx context.Context, name string, size int64) (seen <-chan string, stop chan<- struct{}) {
	result, end := make(chan string, 1), make(chan struct{})
	go func() {
		half := ""
		for {
			if info, err := s.backend.stat(ctx, name); err == nil && info.Size != size {
				half = fmt.Sprintf("one of %d bytes was visible", info.Size)
			}
			select {
			case <-end:
				result <- half
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	return result, end
}

// probeRead looks for what was just written, by name, in the list, and byte by byte.
func (s *Store) probeRead(ctx context.Context, name string, d *Draft) error {
	info, err := s.backend.stat(ctx, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: read after write: an object just written is not there", ErrUnfit)
	case err != nil:
		return fmt.Errorf("testing read after write: %w", err)
	case info.SHA256 != d.SHA256():
		return fmt.Errorf("%w: metadata: SHA-256 of an object is %q, want %s", ErrUnfit, info.SHA256, d.SHA256())
	}
	sum, err := s.sum(ctx, name)
	if err != nil {
		return fmt.Errorf("testing read after write: %w", err)
	}
	if sum != d.SHA256() {
		return fmt.Errorf("%w: read after write: other bytes than the winner's", ErrUnfit)
	}
	listed := false
	err = s.backend.list(ctx, path.Dir(name), true, func(i Info) error {
		listed = listed || i.Name == name
		return nil
	})
	if err != nil {
		return fmt.Errorf("testing list after write: %w", err)
	}
	if !listed {
		return fmt.Errorf("%w: list after write: an object just written is not listed", ErrUnfit)
	}
	return nil
}

// probeSwap lets two writers replace what they have both read.
func (s *Store) probeSwap(ctx context.Context, name string) error {
	defer s.forget(ctx, name)
	var drafts [3]*Draft
	for i := range drafts {
		d, err := s.Draft()
		if err != nil {
			return err
		}
		defer d.Discard()
		if _, err := fmt.Fprint(d, i); err != nil {
			return err
		}
		drafts[i] = d
	}
	if err := s.backend.swap(ctx, drafts[2], name, nil); err != nil {
		return fmt.Errorf("testing compare-and-swap: %w", err)
	}
	won, err := race(func(i int) error { return s.backend.swap(ctx, drafts[i], name, []byte("2")) }, ErrChanged)
	if err != nil {
		return fmt.Errorf("testing compare-and-swap: %w", err)
	}
	if len(won) != 1 {
		return fmt.Errorf("%w: compare-and-swap: %d of 2 writers at once succeeded, want 1", ErrUnfit, len(won))
	}
	return nil
}

// forget removes a probe. One that stays is hidden, and does no harm.
func (s *Store) forget(ctx context.Context, name string) {
	_ = s.backend.remove(context.WithoutCancel(ctx), name)
}
