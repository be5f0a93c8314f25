package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of sys/fs/zfs.h and sys/zfs_ioctl.h, alike in OpenZFS 2.0 to 2.3.
const (
	zfsIocClone    = 0x5a42
	zfsIocPoolSync = 0x5a47

	// struct zfs_cmd, up to the last member that is used. The kernel reads and writes all of it.
	cmdName       = 0    // zc_name
	cmdSource     = 4096 // zc_nvlist_src
	cmdSourceSize = 4104
	cmdSize       = 64 << 10 // more than any version's

	cloners = 200 // clones made at once share transaction groups
)

// cloneAll clones a snapshot to each name (ZFS_IOC_CLONE).
func cloneAll(origin string, names []string, properties nvlist) error {
	control, err := os.OpenFile("/dev/zfs", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer control.Close()
	var arguments nvlist
	arguments.addString("origin", origin)
	arguments.addList("props", properties)
	packed := arguments.pack()

	pending := make(chan string)
	failed := make(chan error, cloners)
	var running sync.WaitGroup
	for range cloners {
		running.Go(func() {
			var err error
			for name := range pending {
				if err == nil {
					err = call(control, zfsIocClone, name, packed)
				}
			}
			failed <- err
		})
	}
	for _, name := range names {
		pending <- name
	}
	close(pending)
	running.Wait()
	close(failed)
	var errs []error
	for err := range failed {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// syncPool waits until all that has been done to a pool is durable, as zpool sync does (ZFS_IOC_POOL_SYNC).
func syncPool(pool string) error {
	control, err := os.OpenFile("/dev/zfs", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer control.Close()
	var arguments nvlist
	arguments.addBool("force", false)
	return call(control, zfsIocPoolSync, pool, arguments.pack())
}

// call asks the kernel for something to be done with a pool or dataset.
func call(control *os.File, request uintptr, name string, arguments []byte) error {
	cmd := make([]byte, cmdSize)
	copy(cmd[cmdName:], name)
	var pinner runtime.Pinner
	defer pinner.Unpin()
	pinner.Pin(&arguments[0])
	binary.NativeEndian.PutUint64(cmd[cmdSource:], uint64(uintptr(unsafe.Pointer(&arguments[0]))))
	binary.NativeEndian.PutUint64(cmd[cmdSourceSize:], uint64(len(arguments)))
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), request, uintptr(unsafe.Pointer(&cmd[0])))
	runtime.KeepAlive(cmd)
	if errno != 0 {
		return fmt.Errorf("ZFS request %#x on %s: %w", request, name, errno)
	}
	return nil
}

// nvlist is a list of named values, as the XDR encoding of libnvpair has them.
type nvlist struct{ pairs []byte }

// Of sys/nvpair.h.
const (
	nvUint64 = 8
	nvString = 9
	nvNvlist = 19
	nvBool   = 21

	sizeofNvpair = 16 // nvpair_t
	sizeofNvlist = 24 // nvlist_t
)

func (l *nvlist) addUint64(name string, value uint64) {
	l.add(name, nvUint64, 8, binary.BigEndian.AppendUint64(nil, value))
}

func (l *nvlist) addBool(name string, value bool) {
	var number uint32
	if value {
		number = 1
	}
	l.add(name, nvBool, 4, binary.BigEndian.AppendUint32(nil, number))
}

func (l *nvlist) addString(name, value string) {
	l.add(name, nvString, len(value)+1, xdrString(nil, value))
}

func (l *nvlist) addList(name string, value nvlist) {
	l.add(name, nvNvlist, sizeofNvlist, value.body())
}

// add appends a pair of one value, which takes size bytes in memory.
func (l *nvlist) add(name string, kind uint32, size int, encoded []byte) {
	var pair []byte
	pair = xdrString(pair, name)
	pair = binary.BigEndian.AppendUint32(pair, kind)
	pair = binary.BigEndian.AppendUint32(pair, 1) // how many values
	pair = append(pair, encoded...)
	// The sizes of the pair as it is encoded and in memory.
	l.pairs = binary.BigEndian.AppendUint32(l.pairs, uint32(8+len(pair)))
	l.pairs = binary.BigEndian.AppendUint32(l.pairs, uint32(align(sizeofNvpair+len(name)+1, 8)+align(size, 8)))
	l.pairs = append(l.pairs, pair...)
}

// body is the list without the header of the outermost one.
func (l nvlist) body() []byte {
	b := binary.BigEndian.AppendUint32(nil, 0) // version
	b = binary.BigEndian.AppendUint32(b, 1)    // NV_UNIQUE_NAME
	b = append(b, l.pairs...)
	return append(b, make([]byte, 8)...) // a pair of no size ends it
}

func (l nvlist) pack() []byte {
	const xdr, littleEndian = 1, 1
	return append([]byte{xdr, littleEndian, 0, 0}, l.body()...)
}

func xdrString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	b = append(b, s...)
	return append(b, make([]byte, align(len(s), 4)-len(s))...)
}

func align(n, to int) int { return (n + to - 1) / to * to }
