// Package boltfile makes a file of bolt, a database that is kept in one file, fit for a bad day: it can be changed on
// a full filesystem, and a damaged file is an error and no panic.
//
// On btrfs the file is overwritten in place, and ends in pages that were written before they are needed. So a change
// needs no new space. The file has no checksums then; Open looks at all of it instead.
package boltfile
