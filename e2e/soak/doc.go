// Package soak runs clients for a long time against a daemon that is killed, signalled, short of space and not alone
// on its filesystem. It looks for losses, left-over volumes and growth. It holds tests only.
package soak
