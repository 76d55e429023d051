package rpm

// Tags of the header, with their numbers in rpm's rpmtag.h.
const (
	Name             = 1000
	Version          = 1001
	Release          = 1002
	Epoch            = 1003
	Summary          = 1004
	Description      = 1005
	BuildTime        = 1006
	BuildHost        = 1007
	Size             = 1009
	Vendor           = 1011
	License          = 1014
	Packager         = 1015
	Group            = 1016
	URL              = 1020
	Arch             = 1022
	PreIn            = 1023
	PostIn           = 1024
	PreUn            = 1025
	PostUn           = 1026
	OldFileNames     = 1027
	FileSizes        = 1028
	FileModes        = 1030
	FileTimes        = 1034
	FileDigests      = 1035
	FileLinks        = 1036
	FileFlags        = 1037
	FileUsers        = 1039
	FileGroups       = 1040
	SourceRPM        = 1044
	ProvideNames     = 1047
	RequireFlags     = 1048
	RequireNames     = 1049
	RequireVersions  = 1050
	ConflictFlags    = 1053
	ConflictNames    = 1054
	ConflictVersions = 1055
	ChangeTimes      = 1080
	ChangeNames      = 1081
	ChangeTexts      = 1082
	ObsoleteNames    = 1090
	SourcePackage    = 1106
	ProvideFlags     = 1112
	ProvideVersions  = 1113
	ObsoleteFlags    = 1114
	ObsoleteVersions = 1115
	DirIndexes       = 1116
	BaseNames        = 1117
	DirNames         = 1118
	PayloadFormat    = 1124
	PayloadCompress  = 1125
	PreTrans         = 1151
	PostTrans        = 1152
	LongFileSizes    = 5008
	LongSize         = 5009
	FileDigestAlgo   = 5011
	RecommendNames   = 5046
	RecommendVers    = 5047
	RecommendFlags   = 5048
	SuggestNames     = 5049
	SuggestVers      = 5050
	SuggestFlags     = 5051
	SupplementNames  = 5052
	SupplementVers   = 5053
	SupplementFlags  = 5054
	EnhanceNames     = 5055
	EnhanceVers      = 5056
	EnhanceFlags     = 5057
)

// Tags of the signature header. Of the signatures, one is about the header alone; it is a detached OpenPGP signature.
const (
	SigDSA             = 267 // also EdDSA
	SigRSA             = 268
	SigSHA256          = 273 // of the header, as text
	SigPayloadSize     = 1007
	SigLongPayloadSize = 271
)
