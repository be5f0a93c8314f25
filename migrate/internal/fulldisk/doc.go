// Package fulldisk tests migrations to filesystems that run full on the way.
package fulldisk
