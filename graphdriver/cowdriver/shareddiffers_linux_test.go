package cowdriver_test

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/graphdriver"
)

// TestSharedRootDiffers shows how a shared root differs from a volume for programs in it, as docs/howto/shared-roots.md
// says.
func TestSharedRootDiffers(t *testing.T) {
	for _, style := range []string{"snapshot", "shared"} {
		t.Run(style, func(t *testing.T) {
			isShared := style == "shared"
			d := newDriver(t, "btrfs.root_style=shared")
			require.NoError(t, d.Create("image", "", nil))
			inLayer(t, d, "image", func(dir string) {
				for _, sub := range []string{"dir/deep", "other"} {
					require.NoError(t, os.MkdirAll(filepath.Join(dir, sub), 0o755))
				}
				for _, name := range []string{"file", "read", "one name"} {
					require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("image"), 0o644))
				}
				require.NoError(t, os.Link(filepath.Join(dir, "one name"), filepath.Join(dir, "other name")))
			})
			opts := &graphdriver.CreateOpts{StorageOpt: map[string]string{"root_style": style}}
			require.NoError(t, d.CreateReadWrite("web", "image", opts))
			inLayer(t, d, "web", func(dir string) {
				in := func(name string) string { return filepath.Join(dir, name) }
				inode := func(name string) uint64 {
					info, err := os.Stat(in(name))
					require.NoError(t, err)
					return info.Sys().(*syscall.Stat_t).Ino
				}
				content := func(name string) string {
					data, err := os.ReadFile(in(name))
					require.NoError(t, err)
					return string(data)
				}

				err := os.Rename(in("dir"), in("other/dir"))
				assert.Equal(t, isShared, err != nil)
				if isShared {
					require.ErrorIs(t, err, unix.EXDEV)
					out, err := exec.Command("mv", in("dir"), in("other/dir")).CombinedOutput()
					require.NoError(t, err, "%s", out)
				}
				assert.DirExists(t, in("other/dir/deep"))
				require.NoError(t, os.Mkdir(in("new"), 0o755))
				require.NoError(t, os.Rename(in("new"), in("renamed")), "a directory of the container's own")
				require.NoError(t, os.Rename(in("file"), in("renamed/file")), "a file of the image")

				before := inode("read")
				reader, err := os.Open(in("read"))
				require.NoError(t, err)
				mapped, err := unix.Mmap(int(reader.Fd()), 0, len("image"), unix.PROT_READ, unix.MAP_SHARED)
				require.NoError(t, err)
				writer, err := os.OpenFile(in("read"), os.O_WRONLY, 0)
				require.NoError(t, err)
				_, err = writer.WriteString("again")
				require.NoError(t, errors.Join(err, writer.Close()))
				assert.Equal(t, before, inode("read"), "the first write keeps the inode number")
				want := "again"
				if isShared {
					want = "image"
				}
				assert.Equal(t, want, string(mapped), "memory that the file was mapped to before")
				seen, err := io.ReadAll(reader)
				require.NoError(t, errors.Join(err, unix.Munmap(mapped), reader.Close()))
				assert.Equal(t, "again", string(seen), "a descriptor that was open before")

				before = inode("one name")
				require.NoError(t, os.WriteFile(in("one name"), []byte("again"), 0o644))
				assert.Equal(t, want, content("other name"))
				assert.Equal(t, isShared, inode("one name") != before, "a written hard link has an inode of its own")
				err = unix.Mknod(in("null"), unix.S_IFCHR, int(unix.Mkdev(0, 0)))
				assert.Equal(t, isShared, err != nil, "a device 0:0 is the mark of a removed name")
			})
		})
	}
}
