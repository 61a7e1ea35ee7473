package sumdb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/mod/sumdb/tlog"
)

// A Place keeps the newest head of our own log apart from its database.
type Place struct {
	// Name is how an operator knows it.
	Name string
	// Store is it.
	Store Store
}

// headName is the file of our log's newest head in a place, which several logs may share.
func (d *Own) headName() string { return "sumdb/" + d.name + "/latest" }

// compare reads what the places have, once: from then on no other process of
// ours can bring an older log in without this one's memory of a newer head.
func (d *Own) compare(ctx context.Context) error {
	d.mu.Lock()
	compared := d.compared
	d.mu.Unlock()
	if compared {
		return nil
	}
	var apart []tlog.Tree
	for _, p := range d.places {
		tree, err := d.read(ctx, p)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a new place
		}
		if err != nil {
			return fmt.Errorf("%w: reading %s: %s; make it readable, or take it out of own_sumdb.head_places", ErrPlace, p.Name, err.Error())
		}
		apart = append(apart, tree)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.compared, d.apart = true, apart
	return nil
}

func (d *Own) read(ctx context.Context, p Place) (tlog.Tree, error) {
	head, err := p.Store.Read(ctx, d.headName(), maxLookup)
	if err != nil {
		return tlog.Tree{}, err
	}
	tree, err := d.open(head)
	if err != nil {
		return tlog.Tree{}, fmt.Errorf("reading its head: %w", err)
	}
	return tree, nil
}

// publish puts a committed head into the head file and into every place, and only then shows it.
func (d *Own) publish(ctx context.Context, head []byte, tree tlog.Tree) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	d.publishing.Lock()
	defer d.publishing.Unlock()
	d.mu.Lock()
	shown, size, everywhere := d.head, d.tree.N, d.everywhere
	d.mu.Unlock()
	if shown != nil && (tree.N < size || tree.N == size && everywhere && d.signatures(head) <= d.signatures(shown)) {
		return nil
	}
	if err := replaceFile(d.headFile, head); err != nil {
		return fmt.Errorf("writing the newest head of our checksum log: %w", err)
	}
	for _, p := range d.places {
		if err := d.put(ctx, p, head, tree); err != nil {
			return fmt.Errorf("%w: writing to %s: %s", ErrPlace, p.Name, err.Error())
		}
	}
	d.step("published")
	d.mu.Lock()
	defer d.mu.Unlock()
	d.head, d.tree, d.everywhere = head, tree, true
	return nil
}

// put keeps a head in a place, unless another process of ours has put a larger one there.
func (d *Own) put(ctx context.Context, p Place, head []byte, tree tlog.Tree) error {
	have, err := d.read(ctx, p)
	if err == nil && have.N > tree.N {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return p.Store.Replace(ctx, d.headName(), head)
}
