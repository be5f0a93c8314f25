//go:build !linux

package main

import "runtime"

func (d *doctor) privileges() {
	d.add(fail, "platform", "run it on Linux", "there is no driver for %s", runtime.GOOS)
}

func (d *doctor) lockHolders() {}
