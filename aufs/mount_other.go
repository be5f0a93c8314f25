//go:build !linux

package aufs

// MsRemount is the flag of Linux that changes a mount.
const MsRemount = 0x20

// Unmount returns ErrAufsNotSupported.
func Unmount(string) error { return ErrAufsNotSupported }

func mountBranches(string, []string, string) error { return ErrAufsNotSupported }
