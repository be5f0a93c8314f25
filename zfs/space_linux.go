package zfs

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// little is the least available space with which making a dataset or snapshot certainly does not fail for lack of
// space. The kernel estimates some hundred KiB for each.
const little = 1 << 20

// explainSpace checks whether a command that makes something has failed for lack of space, and adds the reason to its
// error. It is unix.ENOSPC if the pool is full. It is unix.EDQUOT if a quota of the dataset that holds the volumes, or
// of a dataset above it, is reached. zfs itself says so in words only.
func (b *Backend) explainSpace(ctx context.Context, err error) error {
	if !isCommandError(err) {
		return err
	}
	out, listErr := b.zfs.read(context.WithoutCancel(ctx), "list", "-Hp", "-o", "available", b.zfs.pool, b.root)
	if listErr != nil {
		return err
	}
	inPool, below, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	switch {
	case isLittle(inPool):
		return fmt.Errorf("the pool %s is full: remove something: %w: %w", b.zfs.pool, unix.ENOSPC, err)
	case isLittle(below):
		return fmt.Errorf("a quota of %s is reached: remove something or raise it: %w: %w", b.root, unix.EDQUOT, err)
	}
	return err
}

func isLittle(available string) bool {
	bytes, err := strconv.ParseUint(available, 10, 64)
	return err == nil && bytes < little
}
