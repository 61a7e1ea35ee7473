package main

import (
	"context"
	"io"
)

func runFloor(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	return nil
}
func bench(ctx context.Context, dir string, t *teller) error { return nil }
