// Package mountdir keeps directories of mount points, which only this mount namespace shows.
package mountdir
