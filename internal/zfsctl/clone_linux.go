package zfsctl

import "fmt"

// WhyNoClone says why a clone of a filesystem, below another dataset, cannot stand for it: it could not be promoted, or
// would show other files. It is "" if it can.
func WhyNoClone(source, below Dataset) string {
	from, _ := source.Properties.Text("encryptionroot")
	to, _ := below.Properties.Text("encryptionroot")
	// The kernel leaves out a property that has its default, which is "off" for acltype and not for xattr.
	fromACLs, _ := source.Properties.Number("acltype")
	toACLs, _ := below.Properties.Number("acltype")
	switch {
	case source.Type != Filesystem:
		return fmt.Sprintf("dataset %s is no filesystem", source.Name)
	case from != to:
		return fmt.Sprintf("it is encrypted below %q, and %s below %q", from, below.Name, to)
	case fromACLs != toACLs:
		return fmt.Sprintf("its property acltype is another than that of %s", below.Name)
	case hasXattrs(source) != hasXattrs(below):
		return fmt.Sprintf("its property xattr is another than that of %s", below.Name)
	}
	return ""
}

// hasXattrs reports whether extended attributes are on. Both ways of keeping them can be read then.
func hasXattrs(d Dataset) bool {
	n, set := d.Properties.Number("xattr")
	return !set || n != 0
}
