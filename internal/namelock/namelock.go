// Package namelock locks names, each by one byte of a common file that stays empty. So a lock needs no space. The kernel
// releases the locks of a process that has ended, once its last call has ended too.
package namelock

// Want is a name to lock.
type Want struct {
	Name      string
	Exclusive bool // else shared
}
