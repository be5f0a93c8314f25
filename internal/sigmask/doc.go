// Package sigmask keeps signals away from a system call that must not be interrupted.
package sigmask
