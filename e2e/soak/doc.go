// Package soak runs clients for a long time against a daemon that is killed, signalled, short of space and not alone on
// its filesystem, and looks for what was lost, what was left behind and what grows. It holds tests only.
package soak
