package sendstream

import "strconv"

// Attr is the type of an attribute (the BTRFS_SEND_A constants).
type Attr uint16

// Attributes of stream version 1.
const (
	AttrUUID          Attr = 1
	AttrCtransid      Attr = 2
	AttrIno           Attr = 3
	AttrSize          Attr = 4
	AttrMode          Attr = 5
	AttrUID           Attr = 6
	AttrGID           Attr = 7
	AttrRdev          Attr = 8
	AttrCtime         Attr = 9
	AttrMtime         Attr = 10
	AttrAtime         Attr = 11
	AttrOtime         Attr = 12
	AttrXattrName     Attr = 13
	AttrXattrData     Attr = 14
	AttrPath          Attr = 15
	AttrPathTo        Attr = 16
	AttrPathLink      Attr = 17
	AttrFileOffset    Attr = 18
	AttrData          Attr = 19
	AttrCloneUUID     Attr = 20
	AttrCloneCtransid Attr = 21
	AttrClonePath     Attr = 22
	AttrCloneOffset   Attr = 23
	AttrCloneLen      Attr = 24
)

// Attributes of stream version 2.
const (
	AttrFallocateMode    Attr = 25
	AttrFileAttr         Attr = 26
	AttrUnencodedFileLen Attr = 27
	AttrUnencodedLen     Attr = 28
	AttrUnencodedOffset  Attr = 29
	AttrCompression      Attr = 30
	AttrEncryption       Attr = 31
)

// Attributes of stream version 3.
const (
	AttrVerityAlgorithm Attr = 32
	AttrVerityBlockSize Attr = 33
	AttrVeritySalt      Attr = 34
	AttrVeritySignature Attr = 35
)

// attrCount is one more than the highest attribute known.
const attrCount = int(AttrVeritySignature) + 1

var attrNames = [attrCount]string{
	AttrUUID:             "UUID",
	AttrCtransid:         "CTRANSID",
	AttrIno:              "INO",
	AttrSize:             "SIZE",
	AttrMode:             "MODE",
	AttrUID:              "UID",
	AttrGID:              "GID",
	AttrRdev:             "RDEV",
	AttrCtime:            "CTIME",
	AttrMtime:            "MTIME",
	AttrAtime:            "ATIME",
	AttrOtime:            "OTIME",
	AttrXattrName:        "XATTR_NAME",
	AttrXattrData:        "XATTR_DATA",
	AttrPath:             "PATH",
	AttrPathTo:           "PATH_TO",
	AttrPathLink:         "PATH_LINK",
	AttrFileOffset:       "FILE_OFFSET",
	AttrData:             "DATA",
	AttrCloneUUID:        "CLONE_UUID",
	AttrCloneCtransid:    "CLONE_CTRANSID",
	AttrClonePath:        "CLONE_PATH",
	AttrCloneOffset:      "CLONE_OFFSET",
	AttrCloneLen:         "CLONE_LEN",
	AttrFallocateMode:    "FALLOCATE_MODE",
	AttrFileAttr:         "FILEATTR",
	AttrUnencodedFileLen: "UNENCODED_FILE_LEN",
	AttrUnencodedLen:     "UNENCODED_LEN",
	AttrUnencodedOffset:  "UNENCODED_OFFSET",
	AttrCompression:      "COMPRESSION",
	AttrEncryption:       "ENCRYPTION",
	AttrVerityAlgorithm:  "VERITY_ALGORITHM",
	AttrVerityBlockSize:  "VERITY_BLOCK_SIZE",
	AttrVeritySalt:       "VERITY_SALT_DATA",
	AttrVeritySignature:  "VERITY_SIG_DATA",
}

// String returns the kernel's name of the attribute without its prefix, or its number.
func (a Attr) String() string {
	if int(a) < attrCount && attrNames[a] != "" {
		return attrNames[a]
	}
	return strconv.Itoa(int(a))
}
