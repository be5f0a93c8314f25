//go:build !linux

package toplugin

import "github.com/containerd/errdefs"

func checkHome(string) error { return errdefs.ErrNotImplemented }
