// Package mounttable finds the mounts of a part of a filesystem, in all mount namespaces of the machine. It also
// finds the processes that have a file open.
//
// It decides by two facts of the kernel about each mount: its filesystem, and which directory of that is mounted. It
// never looks at a mount point, where something else may be mounted by now, or a dead server may not answer.
package mounttable
