// Package mounttable finds out who has a part of a filesystem mounted, in all mount namespaces of the machine, and
// which processes have a file open.
//
// It decides from what the kernel says about each mount: its filesystem, and which directory of that is mounted.
// It never looks at a mount point, where something else may be mounted by now, or a dead server may not answer.
package mounttable
