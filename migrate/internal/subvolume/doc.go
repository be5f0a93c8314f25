// Package subvolume knows and destroys the subvolumes of btrfs that an old driver has made for its layers.
package subvolume
