package layertar

import (
	"encoding/binary"
	"fmt"

	"github.com/moby/sys/user"

	"github.com/cowshed/cowshed/internal/treeat"
)

// The extended attributes that hold POSIX ACLs, and the form of their values (struct posix_acl_xattr_header
// and _entry of the kernel's include/uapi/linux/posix_acl_xattr.h).
const (
	aclAccess  = treeat.ACLAccess
	aclDefault = treeat.ACLDefault

	aclVersion   = 2
	aclHeaderLen = 4
	aclEntryLen  = 8 // tag and permissions, 16 bits each, and an id
	aclTagUser   = 0x02
	aclTagGroup  = 0x08
)

// mapACL returns an ACL with the ids of the users and groups that it names mapped, by
// user.IdentityMapping.ToHost or ToContainer.
func mapACL(acl string, ids user.IdentityMapping, mapID func(ids user.IdentityMapping, uid, gid int) (int, int, error)) (string, error) {
	// Either is mapped by itself: 0, as the other, need not be mapped.
	uids, gids := user.IdentityMapping{UIDMaps: ids.UIDMaps}, user.IdentityMapping{GIDMaps: ids.GIDMaps}
	b := []byte(acl)
	if len(b) < aclHeaderLen || (len(b)-aclHeaderLen)%aclEntryLen != 0 || binary.LittleEndian.Uint32(b) != aclVersion {
		return "", fmt.Errorf("%w: an ACL of unknown form", ErrMalformed)
	}
	for e := b[aclHeaderLen:]; len(e) > 0; e = e[aclEntryLen:] {
		id := int(binary.LittleEndian.Uint32(e[4:]))
		var err error
		switch binary.LittleEndian.Uint16(e) {
		case aclTagUser:
			id, _, err = mapID(uids, id, 0)
		case aclTagGroup:
			_, id, err = mapID(gids, 0, id)
		default:
			continue
		}
		if err != nil {
			return "", err
		}
		binary.LittleEndian.PutUint32(e[4:], uint32(id))
	}
	return string(b), nil
}
