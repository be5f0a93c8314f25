package layertar

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treeat"
)

// Files that are created and not filled, because another could not be, are closed.
func TestPoolClosesWhatItDoesNotFill(t *testing.T) {
	testfs.CheckLeaks(t)
	fd, err := treeat.Open(unix.AT_FDCWD, t.TempDir(), unix.O_PATH|unix.O_DIRECTORY, 0)
	require.NoError(t, err)
	dir := newDirFD(fd)
	defer dir.release()

	full := errors.New("full")
	var created, filled int // each of one goroutine, and read when that has ended
	p := newPool(t.Context(), 1, stages{
		create: func(j *job) (err error) {
			created++
			j.fd, err = treeat.Open(unix.AT_FDCWD, "/dev/null", unix.O_WRONLY, 0)
			return err
		},
		fill: func(_ context.Context, j *job) error {
			filled++
			fd := j.fd
			j.fd = -1
			return errors.Join(full, unix.Close(fd))
		},
	})
	for i := range int64(3 * batchJobs) {
		if _, err := p.room(0); err != nil {
			break
		}
		p.add(job{dir: dir.hold(), index: i})
	}
	err = p.barrier()
	p.close()
	require.ErrorIs(t, err, full)
	var entry *EntryError
	require.ErrorAs(t, err, &entry)
	assert.Zero(t, entry.Index)
	assert.Equal(t, 1, filled)
	assert.GreaterOrEqual(t, created, batchJobs)
}
