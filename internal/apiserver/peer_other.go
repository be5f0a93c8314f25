//go:build !linux

package apiserver

import (
	"errors"
	"net"
)

// kernelPeer returns errors.ErrUnsupported.
func kernelPeer(net.Conn) (Peer, error) { return Peer{}, errors.ErrUnsupported }
