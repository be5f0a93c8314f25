package apiserver

import (
	"errors"
	"net"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxGroups is the most groups that a process can have (NGROUPS_MAX).
const maxGroups = 65536

// kernelPeer asks the kernel who connected: as which user, and in which groups.
func kernelPeer(conn net.Conn) (p Peer, err error) {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return p, errNotUnix
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return p, err
	}
	controlErr := raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil {
			return
		}
		p.UID = cred.Uid
		p.Groups, err = peerGroups(fd)
		if !slices.Contains(p.Groups, cred.Gid) {
			p.Groups = append(p.Groups, cred.Gid)
		}
	})
	return p, errors.Join(err, controlErr)
}

// peerGroups returns the supplementary groups that the peer had when it connected.
func peerGroups(fd uintptr) ([]uint32, error) {
	const size = uint32(unsafe.Sizeof(uint32(0)))
	for n := uint32(32); ; n = maxGroups {
		groups := make([]uint32, n)
		length := n * size
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&length)), 0)
		switch {
		case errno == unix.ERANGE && n < maxGroups:
			continue
		case errno != 0:
			return nil, errno
		}
		return groups[:length/size], nil
	}
}
