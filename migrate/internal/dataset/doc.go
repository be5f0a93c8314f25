// Package dataset reads and destroys the ZFS datasets that an old driver has made for its layers: all are children of one.
package dataset

// Dataset is a child of the dataset that holds the layers.
type Dataset struct {
	Quota  int64  // bytes, 0: none
	Origin string // ID of the child that it is a clone of; another text if it is no clone of a child
}
