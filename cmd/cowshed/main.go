// Command cowshed keeps container layers as btrfs subvolumes or ZFS filesystems.
package main

import (
	"context"
	"os"

	_ "github.com/cowshed/cowshed/btrfs"
	_ "github.com/cowshed/cowshed/zfs"
)

func main() {
	ctx, stop := notifyContext(context.Background())
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
