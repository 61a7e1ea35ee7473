package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/headgate/headgate/audit"
	"github.com/headgate/headgate/audit/sinks"
	"github.com/headgate/headgate/gateway/mirror/store"
)

// objects is a place off this machine, as the audit log and its sinks want it.
type objects struct{ *store.Store }

// objects opens a place that audit records go to. They name people, so a folder is for this user alone.
func (c *config) objects(ctx context.Context, location string) (objects, error) {
	if !store.IsBucket(location) {
		if err := os.MkdirAll(location, 0o700); err != nil {
			return objects{}, fmt.Errorf("making folder: %w", err)
		}
	}
	s, err := store.Open(ctx, location, store.Options{Scratch: filepath.Join(c.State, "scratch", "audit")})
	return objects{s}, err
}

// sinkOptions are what the audit log's sinks need beside their configuration.
func (c *config) sinkOptions(stdout io.Writer) sinks.Options {
	return sinks.Options{
		Dir: c.Audit.Dir, Version: thisBuild().Version, Stdout: stdout,
		Objects: func(ctx context.Context, location string) (sinks.Objects, error) { return c.objects(ctx, location) },
	}
}

// PublishFile implements audit.Objects.
func (o objects) PublishFile(ctx context.Context, name, file string) error {
	in, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("publishing %s: %w", name, err)
	}
	defer in.Close()
	d, err := o.Draft()
	if err != nil {
		return err
	}
	defer d.Discard()
	if _, err := io.Copy(d, in); err != nil {
		return fmt.Errorf("publishing %s: %w", name, err)
	}
	return d.Publish(ctx, name)
}

// publishedCheckpoints reads the newest checkpoint of the log in dir at each place that it is published to.
func publishedCheckpoints(ctx context.Context, file, dir string) ([]string, error) {
	c, err := loadConfig(file)
	if err != nil {
		return nil, err
	}
	if len(c.Audit.Publish) == 0 {
		return nil, &useError{errors.New("--published: the configuration names no place in audit.publish")}
	}
	var all []string
	for _, p := range c.Audit.Publish {
		signed, err := c.publishedCheckpoint(ctx, p.Location, dir)
		if err != nil {
			return nil, fmt.Errorf("reading what is published to %s: %w", p.Name, err)
		}
		if signed != nil {
			all = append(all, string(signed))
		}
	}
	return all, nil
}

func (c *config) publishedCheckpoint(ctx context.Context, location, dir string) (signed []byte, err error) {
	place, err := c.objects(ctx, location)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, place.Close()) }()
	return audit.PublishedCheckpoint(ctx, dir, place)
}
