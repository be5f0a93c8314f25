package zfs

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// little is what has to be available for certain if making a dataset or snapshot is not to fail for lack of space. The
// kernel's estimate for one is some hundred KiB.
const little = 1 << 20

// explainSpace says so if it is for lack of space that a command that makes something has failed: unix.ENOSPC in the
// pool, unix.EDQUOT by a quota of the dataset that holds the volumes, or of one above. zfs itself says it in words only.
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
