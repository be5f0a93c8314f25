package mounttable

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Use is a mount that keeps something in use.
type Use struct {
	Mountpoint string // as the processes of its mount namespace see it
	Layer      string // the path by which it is a layer of an overlay that is mounted there, or the overlay's source; "" if it is mounted itself
	namespace  uint64 // inode number of the mount namespace
}

// String says where something is mounted, and in whose mount namespace. It looks for a process of that namespace.
func (u Use) String() string {
	place := "mounted on " + u.Mountpoint
	if u.Layer != "" {
		place = fmt.Sprintf("a layer (%s) of the overlay mounted on %s", u.Layer, u.Mountpoint)
	}
	if own, err := namespaceOf("self", "mnt"); err == nil && own == u.namespace {
		return place
	}
	pid := processIn(u.namespace)
	if pid == 0 {
		return place + " in a mount namespace without processes"
	}
	return fmt.Sprintf("%s in the mount namespace of %s", place, DescribeProcess(pid))
}

// namespaceOf is the inode number of the namespace of that kind of a process, which identifies it.
func namespaceOf(process, kind string) (uint64, error) {
	link, err := os.Readlink("/proc/" + process + "/ns/" + kind) // mnt:[4026531841]
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(link, kind+":["), "]"), 10, 64)
}

// processIn finds a process in that mount namespace, 0 if there is none.
func processIn(namespace uint64) int {
	for _, pid := range processes() {
		if ns, err := namespaceOf(strconv.Itoa(pid), "mnt"); err == nil && ns == namespace {
			return pid
		}
	}
	return 0
}

// maxNamed is how many uses an error names.
const maxNamed = 3

// InUse is an errdefs.ErrFailedPrecondition that lists the users of an object, nil if there are no uses.
func InUse(what string, uses []Use) error {
	if len(uses) == 0 {
		return nil
	}
	var places []string
	for _, u := range uses[:min(len(uses), maxNamed)] {
		places = append(places, u.String())
	}
	if more := len(uses) - len(places); more > 0 {
		places = append(places, fmt.Sprintf("and %d times more", more))
	}
	return fault.New(fault.ErrInUse, "%s is %s: unmount it there", what, strings.Join(places, ", "))
}
