// Package detect answers three questions, with the reasons: which filesystem holds a path, whether a driver can work
// there, and which functions the kernel has.
//
// The error for a place where a driver cannot work wraps one of graphdriver's, with the reason and advice:
//
//	graphdriver.ErrPrerequisites   the path is on another filesystem than the driver's, a kernel module or
//	                               device is missing, or the kernel's interface is not known
//	graphdriver.ErrIncompatibleFS  the driver's filesystem is in a state that it cannot work on: read-only,
//	                               not mounted, its pool is unwell, or the operations needed are not permitted
//	graphdriver.ErrNotSupported    this platform has no such driver
//
// Of the second kind, a *[ReadOnlyError] says that existing layers can be read.
//
// Any other error says that the question could not be answered.
//
// Features of the kernel are found by trying them, not by comparing versions. Each such function has three answers:
// nil, an error that wraps graphdriver.ErrNotSupported with the reason, and any other error if it could not tell.
package detect

// Filesystem describes the filesystem that holds a path, and the mount through which the path is reached.
type Filesystem struct {
	Path       string // the path asked for, or its nearest existing ancestor
	Type       string // "btrfs", "zfs", "ext4", "overlay", …, or the magic number, "0x1234", of an unknown one
	Magic      uint32 // f_type of statfs(2)
	Mountpoint string // "" if the mount is not below this process's root directory
	Source     string // device, or dataset, or whatever else the filesystem calls its source
	Root       string // directory of the filesystem that is mounted there
	Options    string // of the mount and of the filesystem, separated by commas
	ReadOnly   bool   // the mount or the filesystem is

	forcedReadOnly bool // the filesystem is, behind the back of a mount that is not
}

// Feature is something that works better if the kernel has it.
type Feature struct {
	Name    string       // "simple quotas"
	Without string       // the disadvantage without it
	Check   func() error // nil, graphdriver.ErrNotSupported with the reason, or why it cannot be told
}

// String describes f for people: "ext4 (/dev/vda1, mounted on /)".
func (f Filesystem) String() string {
	if f.Mountpoint == "" {
		return f.Type
	}
	return f.Type + " (" + f.Source + ", mounted on " + f.Mountpoint + ")"
}
