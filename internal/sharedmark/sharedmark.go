// Package sharedmark tells the directory that Cowshed keeps at the root of a volume of root style "shared". Its layout
// is a matter of package sharedroot. Others only leave it alone.
package sharedmark

const (
	// Dir is the name of the directory at the root of a volume.
	Dir = ".cowshed"
	// Upper is the name of the upper in Dir.
	Upper = "upper"
	// Xattr is the extended attribute of the directory. A directory of that name without it belongs to a user.
	Xattr = "trusted.cowshed.shared"
)
