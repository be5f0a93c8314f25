// Package unixsocket makes unix sockets that only their owner can connect to, and that take the place of those that
// dead processes left behind.
package unixsocket
