package testfs

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// PowerCut shows the state after a power cut at this moment of a filesystem that [Btrfs] made. It copies the image,
// mounts the copy and returns its mount point. Data that the kernel still holds back, an uncommitted transaction for
// one, is not in it. It skips the test on kernels before 6.7, which cannot mount a copy beside the original.
func PowerCut(t testing.TB, mnt string) string {
	t.Helper()
	if KernelBefore(t, 6, 7) {
		Skip(t, "needs Linux 6.7 or later: earlier ones cannot mount a copy of btrfs beside the original")
	}
	dir, err := os.MkdirTemp(workDir(t), "power-cut-")
	if err != nil {
		t.Fatalf("testfs: %v", err)
	}
	image, copied := filepath.Join(dir, "btrfs.img"), filepath.Join(dir, "btrfs")
	out, err := exec.Command("cp", "--sparse=always", mnt+".img", image).CombinedOutput()
	if err != nil {
		t.Fatalf("testfs: copy %s.img: %v: %s", mnt, err, out)
	}
	if err := os.Mkdir(copied, 0o700); err != nil {
		t.Fatalf("testfs: %v", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("testfs: %v", err)
		}
	})
	mountLoop(t, image, copied)
	return copied
}
