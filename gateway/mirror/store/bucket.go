package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gocloud.dev/blob"
)

// Deadlines of calls to a bucket. Retries within them are the SDK's.
const (
	callTimeout  = 30 * time.Second
	stallTimeout = 30 * time.Second // for each piece of a file that is read
	uploadRate   = 1 << 20          // bytes a second at which an upload may take its time
	staleUpload  = 24 * time.Hour   // no upload takes that long: its process is gone
)

// Memory that one upload takes: parts in flight.
const (
	partBytes    = 8 << 20
	partsAtATime = 2
)

// sumKey is the metadata key of an object's SHA-256.
const sumKey = "sha256"

// bucket is the backend of a bucket. An object becomes visible whole, with the
// last request of its upload.
type bucket struct {
	b *blob.Bucket
}

// Join gives the location of a store below another one's.
func Join(location, elem string) string {
	u := address(location)
	if u == nil {
		return filepath.Join(location, elem)
	}
	q := u.Query()
	q.Set("prefix", path.Join(q.Get("prefix"), elem))
	u.RawQuery = q.Encode()
	return u.String()
}

// IsBucket tells whether a location is one in a bucket, not a folder.
func IsBucket(location string) bool { return address(location) != nil }

// address reads the address of a bucket; of a folder it is nil.
func address(location string) *url.URL {
	if !strings.Contains(location, "://") {
		return nil
	}
	u, err := url.Parse(location)
	if err != nil {
		return &url.URL{}
	}
	return u
}

// CheckLocation tells what is wrong with a location, without going there.
func CheckLocation(location string) error {
	u := address(location)
	if u == nil {
		return nil
	}
	prefix := u.Query().Get("prefix")
	switch {
	case !slices.Contains(schemes, u.Scheme):
		return fmt.Errorf("%q is not a bucket's address; want a folder, or s3://BUCKET, gs://BUCKET or azblob://CONTAINER", location)
	case u.Host == "" || u.User != nil || u.Port() != "" || strings.Trim(u.Path, "/") != "" || u.Fragment != "":
		return fmt.Errorf("%q names no bucket alone; want %s://BUCKET?prefix=FOLDER, credentials where the cloud's own tools look for them", u.Redacted(), u.Scheme)
	case prefix != "" && !fs.ValidPath(prefix):
		return fmt.Errorf("prefix %q is no folder; want one such as headgate/modules", prefix)
	}
	return nil
}

func (s *Store) openBucket(ctx context.Context, location string, o Options) error {
	if o.Scratch == "" {
		return fmt.Errorf("opening store %s: no folder for drafts", location)
	}
	u := address(location)
	q := u.Query()
	prefix := path.Clean("/" + q.Get("prefix"))[1:]
	q.Del("prefix")
	u.RawQuery = q.Encode()
	b, err := blob.OpenBucket(ctx, u.String())
	if err != nil {
		return fmt.Errorf("opening store %s: %w", location, err)
	}
	if prefix != "" {
		prefix += "/"
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := abortUploads(call, b, u.Host, prefix, o.Now().Add(-staleUpload)); err != nil {
		return errors.Join(fmt.Errorf("opening store %s: %w", location, err), b.Close())
	}
	if prefix != "" {
		b = blob.PrefixedBucket(b, prefix)
	}
	s.backend = &bucket{b}
	if s.scratch, err = openScratch(o.Scratch); err == nil && !o.Tested {
		if err = s.selfTest(ctx); err != nil {
			err = errors.Join(err, s.scratch.close())
		}
	}
	if err != nil {
		return errors.Join(fmt.Errorf("opening store %s: %w", location, err), b.Close())
	}
	return nil
}

func (b *bucket) close() error { return b.b.Close() }

// said gives an error of the bucket our words: a missing object alone is not there.
func said(doing, name string, err error) error {
	switch {
	case err == nil:
		return nil
	case isMissing(err):
		return fmt.Errorf("%s %s: %w", doing, name, fs.ErrNotExist)
	}
	return fmt.Errorf("%s %s: %w", doing, name, err)
}

func (b *bucket) open(ctx context.Context, name string) (File, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	f := &object{b: b.b, name: name, ctx: ctx, cancel: cancel}
	f.stall = time.AfterFunc(stallTimeout, func() { cancel(errStalled) })
	// The request is that of the first Read, if that comes without a Seek.
	r, err := b.b.NewReader(ctx, name, nil)
	f.stall.Stop()
	if err != nil {
		err = f.cause(said("opening", name, err))
		cancel(nil)
		return nil, err
	}
	f.Reader = r
	return f, nil
}

var errStalled = fmt.Errorf("no bytes for %s", stallTimeout)

// object is an open object. A Seek makes the next Read ask for a range.
type object struct {
	*blob.Reader
	b      *blob.Bucket
	name   string
	ctx    context.Context // of the reader
	cancel context.CancelCauseFunc
	stall  *time.Timer
}

func (f *object) cause(err error) error {
	if err != nil && !errors.Is(err, io.EOF) && errors.Is(context.Cause(f.ctx), errStalled) {
		return fmt.Errorf("reading %s: %w: %w", f.name, errStalled, context.DeadlineExceeded)
	}
	return err
}

func (f *object) Read(p []byte) (int, error) {
	f.stall.Reset(stallTimeout)
	defer f.stall.Stop()
	n, err := f.Reader.Read(p)
	return n, f.cause(err)
}

// WriteTo hides that of the reader, which knows no deadline.
func (f *object) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{f})
}

func (f *object) ReadAt(p []byte, off int64) (int, error) {
	if off >= f.Size() {
		return 0, io.EOF
	}
	ctx, cancel := context.WithTimeout(f.ctx, callTimeout)
	defer cancel()
	r, err := f.b.NewRangeReader(ctx, f.name, off, int64(len(p)), nil)
	if err != nil {
		return 0, said("reading", f.name, err)
	}
	defer r.Close() //nolint:errcheck // it was read only
	n, err := io.ReadFull(r, p)
	if errors.Is(err, io.ErrUnexpectedEOF) && off+int64(n) == f.Size() {
		err = io.EOF
	}
	return n, err
}

func (f *object) Close() error {
	defer f.cancel(nil)
	return f.Reader.Close()
}

func (b *bucket) attributes(ctx context.Context, name string) (*blob.Attributes, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	a, err := b.b.Attributes(ctx, name)
	return a, said("describing", name, err)
}

func (b *bucket) stat(ctx context.Context, name string) (Info, error) {
	a, err := b.attributes(ctx, name)
	if err != nil {
		return Info{}, err
	}
	return Info{Name: name, Size: a.Size, ModTime: a.ModTime, SHA256: a.Metadata[sumKey]}, nil
}

func (b *bucket) list(ctx context.Context, dir string, shallow bool, f func(Info) error) error {
	var o blob.ListOptions
	if dir != "." {
		o.Prefix = dir + "/"
	}
	if shallow {
		o.Delimiter = "/"
	}
	for it := b.b.List(&o); ; {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		obj, err := it.Next(call)
		cancel()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("listing %s: %w", dir, err)
		}
		i := Info{Name: strings.TrimSuffix(obj.Key, "/")}
		if dir == "." && (i.Name == temp || strings.HasPrefix(i.Name, temp+"/")) {
			continue // what a self-test left
		}
		if !obj.IsDir {
			i.Size, i.ModTime = obj.Size, obj.ModTime
		}
		if err := f(i); err != nil {
			return err
		}
	}
}

func (b *bucket) put(ctx context.Context, d *Draft, name string, how mode) error {
	if how != absent {
		return b.upload(ctx, d, name, blob.WriterOptions{})
	}
	for tries := 0; ; tries++ {
		err := b.upload(ctx, d, name, blob.WriterOptions{IfNotExist: true})
		if err == nil {
			return nil
		}
		// Whatever went wrong (a lost answer of ours, too), what counts is
		// whether the name is there now.
		switch _, serr := b.stat(ctx, name); {
		case serr == nil:
			return fmt.Errorf("%w: %w", fs.ErrExist, err)
		case !isRefused(err) || tries == 3:
			return err
		}
	}
}

// upload sends the draft. An upload that ends early leaves nothing visible.
func (b *bucket) upload(ctx context.Context, d *Draft, name string, o blob.WriterOptions) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout+time.Duration(d.size/uploadRate)*time.Second)
	defer cancel()
	o.ContentType = "application/octet-stream"
	o.BufferSize, o.MaxConcurrency = partBytes, partsAtATime
	o.Metadata = map[string]string{sumKey: d.SHA256()}
	return b.b.Upload(ctx, name, io.NewSectionReader(d.f, 0, d.size), &o)
}

func (b *bucket) swap(ctx context.Context, d *Draft, name string, old []byte) error {
	changed := fmt.Errorf("swapping %s: %w", name, ErrChanged)
	if old == nil {
		err := b.upload(ctx, d, name, blob.WriterOptions{IfNotExist: true})
		if err != nil && isRefused(err) {
			return changed
		}
		return said("swapping", name, err)
	}
	// Attributes first: bytes that come after them are covered by the condition.
	attrs, err := b.attributes(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return changed
	}
	if err != nil {
		return err
	}
	same, err := d.s.holds(ctx, name, old)
	if err != nil {
		return fmt.Errorf("swapping %s: %w", name, err)
	}
	if !same {
		return changed
	}
	err = b.upload(ctx, d, name, blob.WriterOptions{BeforeWrite: ifUnchanged(attrs)})
	if err != nil && isRefused(err) {
		return changed
	}
	return said("swapping", name, err)
}

func (b *bucket) remove(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return said("removing", name, b.b.Delete(ctx, name))
}
