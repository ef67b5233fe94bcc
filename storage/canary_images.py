"""Canaries that need no store: small images made for this, and what the contract makes of them.

They hold what decoders and filters disagree about: subsampled chroma, progressive scans, an EXIF
rotation, grey, CMYK, a palette, alpha, 16 bits; boxes that shrink and enlarge, both filters,
padding, flips. The digests are pillow-simd 12.1.1's, and the tests compute them without it.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

Box = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class SmallCanary:
    """One view of one image.

    name: of the image. box: (top, left, height, width) in the padded image.
    pixels, image, sketch: as `storage.canaries.Canary` has them.
    """

    name: str
    padding: int
    box: Box
    flip: bool
    size: int
    interpolation: str
    pixels: str
    image: str
    sketch: str


def small_images() -> dict[str, bytes]:
    """The encoded images by name."""
    return {name: base64.b85decode("".join(text.split())) for name, text in _ENCODED.items()}


def small_canaries() -> list[SmallCanary]:
    """All views of all images."""
    return [
        SmallCanary(
            name=name, padding=padding, box=box, flip=flip, size=size, interpolation=filter_name,
            pixels=pixels, image=_DECODED[name], sketch=sketch,
        )
        for name, padding, box, flip, size, filter_name, pixels, sketch in _VIEWS
    ]  # fmt: skip


# fmt: off
_DECODED = {
    "subsampled.jpg":
        "bfb4e01f481c727724a16e0d90923a101e8971c848f414e8f8db58ffcf440800",
    "progressive.jpg":
        "4fa2170a43b1bee6def2430aa558b43b823a7fdbb2bd034eebc729c90529b6a5",
    "rotated.jpg":
        "7ccc79dec4925df0e544fa67b4cfa051d9fddd79a7549a2b3986870c6d1dc312",
    "grey.jpg":
        "d1869bf5f9015cd6223024ce7b5a8cbb41d7e6de12e102f246276489a0979376",
    "cmyk.jpg":
        "5e6d12e5b1f52d55ecb4c5608c0170456fe8a7beeba55eacbf7b97f1f4ae635b",
    "palette.png":
        "7a66b53769508da12c74e071f4e9a88d3cd187357fd77e03b10b66029a330497",
    "alpha.png":
        "ca03d331bfc9f931d055d2a87bbfa9a1b6ca780cfacf755e00489c9a5d92254c",
    "deep.png":
        "e7b525bf8d3c4e50767cecad3b4707886756059c55df9894dc924c91f71ac16b",
}
_VIEWS: list[tuple[str, int, Box, bool, int, str, str, str]] = [
    ("subsampled.jpg", 0, (2, 3, 25, 32), False, 12, "bilinear",
     "c25376db9688fb1aa1cf50258174936e8ed796cff65df859e10004ea1d529d80",
     "512a5c826b2a73717aac2a348b6393bca660b1adb1e2646c"
     "a08899cfca65bfd1b5f28570756d44a5af1598b75cd36f1c"),
    ("subsampled.jpg", 3, (0, 0, 32, 38), True, 26, "bicubic",
     "208dfe8cdcd27de044711cd97efb85eced1ad339b1b2ab8c1c44b9247af977ce",
     "5a103030404d421c28121440cd4d4f8e9d7faa6341434666"
     "f2857fb7daafd39f70656f8bc9682085ba4ba17d16415946"),
    ("progressive.jpg", 0, (3, 3, 21, 28), False, 12, "bicubic",
     "50acaf526b691569f85080bee39120889dca2efdb0a256aa5ef2dcb8212260c4",
     "6f44913a8f77a27994c02f75ac8ebf79d8a4ddc0c2f476a1"
     "52859a20d17d8abc9ca6727c8a3a6758894dbf7169db2748"),
    ("progressive.jpg", 0, (3, 3, 21, 28), True, 26, "bilinear",
     "3a629138ae77579c39fd2acbec4a6a1921e357f28e44c9b7f061bb03ef3740f1",
     "ba2b76a0728c378e7867458bf172a2ddb8bb78d6a5a78fb8"
     "a773818eba9723d583508b97d5294dbd7166548e54824264"),
    ("rotated.jpg", 0, (2, 2, 19, 27), True, 12, "bilinear",
     "f6e3eed3fcbefa1b7f53ae62a55c7050aaf7ea5e5867be34fcd4dc8e02e73036",
     "b5226fae6632c92213f0683aac2c95a86e52c42a35e77061"
     "8653a78296639e5248c398735981b056c373727f5694c581"),
    ("rotated.jpg", 0, (3, 2, 18, 27), False, 26, "bicubic",
     "d90fa18af643d2aee6dbe1f5d0102e3bc9480d1238bf16e1906c038a08648fdc",
     "f26c41cc2017af6932b62170e57868c42c3aa77755a92f98"
     "c29e749e5448829f5e8356a495ca82747f5757c9705882af"),
    ("grey.jpg", 0, (3, 2, 17, 17), True, 12, "bicubic",
     "e8bc7b54e172052bd3b77043db2225127671db6193789ecf0f5a9bf03a014f6c",
     "a1a1a18e8e8e7676767c7c7c8181817575755e5e5e656565"
     "6868685959594343434b4b4b8989897a7a7a5e5e5e686868"),
    ("grey.jpg", 0, (2, 3, 18, 16), False, 26, "bilinear",
     "23ffb5d63cce92502e3dddd665cad4dcdaadfe4ad25adc1ee8e7dc00237e81b5",
     "7272727070708787879a9a9a6767676969698080808a8a8a"
     "4848484444445b5b5b6868686161615d5d5d787878868686"),
    ("cmyk.jpg", 0, (3, 2, 12, 16), False, 12, "bilinear",
     "5f70e8541882fc864fd49e4fb68b7ae0c7f358a1cda40572817dd207ec7cd7e1",
     "99293d8e4d2085702e63855dc62132bf470eaf6c1e8e824a"
     "ea3311e16003d88005b5912eef5c13e68202dca606b8c12e"),
    ("cmyk.jpg", 0, (3, 2, 12, 16), True, 26, "bicubic",
     "708f40ac777ae31537517f405a2694648f0da5cf594bbf724a0b83a7b43ae7c7",
     "6086618272318b4f21972b3c8b824dac6c1fbc480dc42330"
     "b29030d58007e06003e93212b6bf2fdba507e48202ef5c11"),
    ("palette.png", 0, (3, 2, 15, 18), False, 12, "bicubic",
     "3eb2ac6104b519d25cc272e648190c84b9b9e7a883ebaaeaae7c5cdf70c8c332",
     "d48847c97d4ec12f6eaf6a5daac4369cc138a17d5a8b9f4a"
     "94d62d61cb2b65804e5bac38779a485e9345624869606959"),
    ("palette.png", 0, (3, 3, 15, 17), True, 26, "bilinear",
     "db751d26e19d72190bf11c71b13bd3af1b2e89b80fb985f38a8f237481586807",
     "ad6e5cc12e6fc46d55d692428ca248a3795a9aaf40a8ca33"
     "5bb33566804f5ebd3189e0266072546248695f89496da73f"),
    ("alpha.png", 0, (2, 3, 7, 9), True, 12, "bilinear",
     "5cd4acb9418400016b22cda620e55a07bd82d0df8e6bfa8f4f107c4416939530",
     "fd113de2242c9543277c5e24f71637d53123894b2469641d"
     "df3120aa4619625c18457b14af54069561103c840b25a502"),
    ("alpha.png", 0, (3, 3, 6, 9), False, 26, "bicubic",
     "37da5bdf5b7c98c58ebf0d661217bbb45b6bdc32bbfd1a640c0f245258b5ebc9",
     "7460208a4b26df2a26fc0f3e586c1a824d21c73820f31e2f"
     "418212556415a04a15d4391a22a701388809926512ae5405"),
    ("deep.png", 0, (2, 3, 11, 14), True, 12, "bicubic",
     "73ceedec644f07186b45479459aa4857ed3705a8b34b2bedaa8861648dbd143d",
     "3030302c2c2c2929292525255050504c4c4c494949454545"
     "7070706c6c6c6969696565659191918c8c8c898989858585"),
    ("deep.png", 0, (3, 2, 10, 14), False, 26, "bilinear",
     "09b985ce8a02477515d5b3e7712bc6b23354b066e852a4d699f873234ec82926",
     "2d2d2d3131313434343838384a4a4a4e4e4e515151555555"
     "6868686b6b6b6f6f6f7272728484848888888b8b8b8f8f8f"),
]
_ENCODED = {
    "subsampled.jpg": r"""
|JeWF01!$>Nk#wx0RR9200961|JwjV00smF1_cBL1_cHO2L=cV5DE$j2?`Vr4-60&6c`v66c!d59VH(c8zUSR79cDjBPJ&)D
k&KsEif%8FeNA{DF534LjeZ|2MP!Z6AB6wC>j<TC@3f>C@3f>C@3f>C@3f>C@3f>C@3f>C@3f>C@3f>C@3f>C@3f>C@3f>C@
3f>C@BBH01*fP9snf+0U`hb5di}c0sq7R7ytkR0RaF20000000000000FB2LJ^B!~iG|009C80|NvD00000000000Rj;K0|f
>l1QJm(L7@~CB5{GS@c+aB7XbhR0RR910000000000000651qA=Z045Ot0RsaA0tWy9000000000100IO91{4Jm6ColaBr!o
!VR8T301N{G00I#M5dc2`mfaNDsn;=bO1Nk%YtpABE}+gG-^@`ii*{Mok{Mqo>7T?GwXNA?4f23Ij_})xysTDtDq1*a4NcN_
w#^!TgfYtw&<3eYoB;qcV*)Qpx8?eN3--^^h1%7>ED$yfjxpvl(XA-M^+jn4VnfP?>1nDdJCdwm1dg6#MQT;OECYt&hgi`Yo
>$2P;LL~quA7>vENch^0R2XB1#Nn)ken!ZXpLO;iJrAVi$6V}y{%T8um>(&eSc;G;mI+Xxk%C<;Z#?%Q<M^*y`_tCA#%5_mZ
0HIM_%N@iK|USladbMka>U=O0?yLs1go;agKqNhtQ(5Tnv})owU_CKQc;2S)HRq%THNZ-c$)L*$)~fd6DjwImF0$`(OXr
""",
    "progressive.jpg": r"""
|JeWF01!$>Nk#wx0RR9200961|JwjV00jdC1Ox*G1Ox;H1qB8N3<w7Y2L}%e3keJn4-yg)4-pX)791B76dDx~5f~vD8XX-UA
0HDJA|xUnBpe<e9{<|_LjeT^1qTKP4hRSi9uyH29v&VZ9v&VZ9v&VZ9v&VZ9v&VZ9v&VZ9v&VZ9v&VZ9v&VZ9v&VZ9v&VZ9v
&VZ9v=U~01*fP8vr5$0U-ba5di}c0sq7R8UO$S0|5a50000000000000C900RaA0{_GS7y$tR0RaI30000000000000F800a
jA+5ij#0RRFJ0}ucJ0n3}+o1u%|V`uG82xh1v=Obt1&lfjC2WyV-gm;uxsu;OsY_I>s03Z+m0R#d90|5X40000000003009C
75fc(I6d^M~|Jncu0RaF31p<1dRjQXWs$FxeUS1&=Au7@qX5!T+7c7N29ao&QGCsMH-dhO2Yjj_UJv(*(!~h%-00RI600RI3
0000000000009L85flRx75~}*2mu2D0Y3q}vm|>shWv%<D`biblVhZd(3u_^<31sOJhn*5@((<=fB(b)A`t)r0RjaD000000
0000000010s|2Q1rih?6CxxrQUBTi2mt~C0Y3r9#utH3Fy14y%ss$^TgAz#nT2I~WGhE_j=K6|-!Lh^Ef;71!~hr&00RL500
00000000000005Fjx@0sq<n2mt{A20sFw8Y#xF|HJ?v5CH%J0s;a900000000000096IAu&;55J7Q)!T;I-2mt{A0Y4$x?3r
3v-2EVy=W1_klyyw2Dv+KYIe3oVA9v<G&+c$Ig5h|HhPUhXHEWUq3qSwb01N{G00IC50000G5x^mc81w(c02~nk00RI50{{R
3000000000101-hU!7*Xs|Jncu0RsU6KM=G-rVvkwkrG3lOE1_~P@cMo8l2_n6kE=TdCdRB03Z<n0s#XA0{{R30000000000
0TCfFK@d@4fsw)C|Jncu0RjO5KM?T}1d!CMI!{k*GBNBqZ>OoD%k(>~4t26~AOFMvB@h7s0s;U81_J;900000000315g{=_Q
DMPxfsvuH@X_J%|Jncu0RaF3KM;DJL$8D>T)^L_PwcpjmIGN>sX-i+{Ci9C+V5YPYKK)v7CAOD-tqc^6#|}_aThpzuKxFz=F
eL1EDAs-YwqETt*ExF;kX*hF0bMY7@drfcEgi3-Y8knd9m3yPA`UI1h!a(DvcWPm$0ZSbN|@
""",
    "rotated.jpg": r"""
|JeWF01!$>Nk#wx0RR9200961|KR{4MR;ju002!*04e|g00;m90TKWM0000100sa600000|JwjV00jdC1Ox*G1Ox;H1qB8N3
<w7Y2L}%e3keJn4-yg)4-pX)791B76dDx~5f~vD8XX-UA0HDJA|xUnBpe<e9{<|_LjeT^1qTKP4hRSi9uyH29v&VZ9v&VZ9v
&VZ9v&VZ9v&VZ9v&VZ9v&VZ9v&VZ9v&VZ9v&VZ9v&VZ9v&VZ9v=U|01*fP7yusw0TBQK5di}c0sq7R7ytkR0RaF200000000
00000992Lc8E!~iM~00IF51Ox>I00000000000Rj;KAp-^yF$4t%K@=4hVc~(1p|SA)!~hrp00IL50000000000000001qK5
I2mizXDG>kx0|NsB1qA>A00000000310|f#E5fc<41`-t_F;QVbk)h%6|Jncy0|5X65d#qbKLF@*w#4+{1*}xf<FzBtTAk7D
3u_Fwug|ad=}XnIn=zF|)JsGQeP*L_(CBB|>WR%T%{F;V+3Okntr3F*0N5J6(^kYg!b7pPXx)@<lj1Q~4KM^5jqlo?B`rLo0
UN!xYc!{>QNabvI)cO`!2|E_OOvI&$sMQcfcWU#01B6Q05cPVhT3&l5!z}h^z`wA_(i8D!LdC2CT#V=M=J&{H)!owdR(+$0M
b$wjQt|$fPGQ=Q^ArL;mDD`neFlWr@301G}FdWIT^u_3BsfDejPn9R={W%2YXg=I^{c}epXdft$UEB9vu#0YlzllosYf0zZD
bCQW`~OWt`dIdnSDK!Y7xk&e32bZ}C?;UC>-eR#LT_q6*(hurS+EYi|PL#-8OW9iXD}6An|!EC1O
""",
    "grey.jpg": r"""
|JeWF01!$>Nk#wx0RR9200961|JwjV00jdC1Ox*G1Ox;H1qB8N3<w7Y2L}%e3keJn4-yg)4-pX)791B76dDx~5f~vD8XX-UA
0HDJA|xUnBpe<e9{<1q3kU!f02ToO5di<h02crO0RaI30000000000000041_cNI!~iG|009C80|WsD00000000000Rj;K0|
f>#1QH<>B0*8`Gg5JZvH#it2mt{A06zf8xovuA)~phQkggazc>P1IYg(KXr4)dWQUDFcU-=ahZHiGpQ6r4-ALGX&xhk~|seR
Ks54@LnRk>8Cs3`|~?HE6psnFD_iUk2GSs4l^-@YJMHkV7+nQE1iz>jXv3bthFCCNLbpR^Q!F!5O<OQqNZ$smljetD1o*#
""",
    "cmyk.jpg": r"""
|JeWT01iQ9Z(?NtWB>pF0095n07C!<1O)~K1O^5L1_uWQ2nrAi3JD1c6b=sz5Em2}7#9>478)HT9~v7Y92OQJEFdE$Cn+i^8
6Pb$EhsQ0C@CoazyK5o01^Nd1Va%3O%VWD5dcdO0RO}Q7ytkR0RaF20000000000000052L=fL!~ii600IC61p)*F1_J;900
0000RjL61Q7)WAu&M`Q4=C@kzs+c@Dvp?QgY#;!O{QP01gC008Ic{080P>KLB$>mMR{Akc9M&0^Ah`W8eNnZ!F`rEi+D{+7o
|G@9+I>6O8Sc=J=&$u?v2peZQ}G>X=K4WqO35sJ|0P&}pKqS8~=pP^zRBu>!-Zn|<xx6lJV_V$}j15=j7Q$KTQjz*S|MlQgP
$fkD5Mx%7t>SnWmE#8Tvo*yurvjsuRfQHyl2(BDDDztDm^5`vzQX!k&DEJ@?!Jt9$-@{1XRtxGP}BH;W!k<9tFb$O^OK5H3Z
{+nB!;DorWiZ-N~bxyvs@a@mEShDU=X^Nx6ai?RasoRKKf<0H`6i8+rzyOc)p!MPipH$1B6Wq;~rswxt?}%?vlZh*NMfke{b
>wVf$$-wpg&&e>0QZ(JZ;TPMpm+SbTXi>AKo`HPAj?RCpb)E|Hq&n`WpjF~PN@u_iyg<L5RSHEwi!`(W9MV3{v+uX+^PYlVn
8Rk`NF)bEgH5<lv2gFBVEi9Kc38Iuq<t0cZWEPv@0g)yB;FPger;&Hc_e$Admmq
""",
    "palette.png": r"""
iBL{Q4GJ0x0000DNk~Le0000N0000K1Oos70F;osJpcdzBv4FLMWEs-sJcF3<R4bKG}w_tmW^3nlSIL6S7mKj!9!=k8+Tzdb
m}7Fk^lezwn;=mRCwAg!7)<8KokJb$KN=1n)KoXEN#}w1w5!1u=56T1LFbI6xI;1(7}+k@x8_4_ASM#UR*r*4TB!#a8E^V#w
>&-Fb?x3M)**ea?DTk#&H_-)j%&7!?aPIPA~iV-SuE6^a}IFv$i^6R}b9m=J+h5)vMGLs)-1V6QZK6ty>7GHD-|(q}%23r@5
+Kp6|aSpWQW`)J0N9SH8Mvvkq0tuiAvQW2g%mxfNRu{`~=Fc17vugMEMi0000<MNUMnLSTX
""",
    "alpha.png": r"""
iBL{Q4GJ0x0000DNk~Le0000F0000C2nGNE0KG!z<NyExf=NU{RCwBLkxg$BQ5c2Ka|@jU>5N1=mJ)48U68PJ<=W_~KgmDj4
>7J9S0vb4DV^2<N`o_n@*%mn;HzW1IIDZl^PJ@6%jZv$ge2;NOLi{iNFwOY$liJ!CkAJ@iyb+b+=LFVSpCmP@+2{eTkM2dKd
h2G@3S}DMG|)8u%`|;`4{PO&O2nhwK4ynzoj0|67tAgA6z1drs)&dB27O-pco}$Qn*_e?Z`p-2jyFxAvsSPSJPdIY_EjLO*Z
D6;t#JI<_K#s(dit$G3b0@m&CV&3GaV9YrvoT8dnFcjXA8vDO0!vH21~vU^@l4de-8?CX4ckJM|>-ecHi(G?+8Hg!sHXw^+A
}B)+;Uct|$!spku1!Vhz=`?JUC%%Yj4DuX22M_nYJ$f;0nT&I@R^99C7EN1&}OSGqVB)^6<0!y{|01zD#RVzrM+_)w#2aLB!
pGp$$>%t>|Em}<9tgZLnlzoZzz)6>%%85JWowhN3LsYG#VE+JszMz0#(M>l10000<MNUMnLSTX
""",
    "deep.png": r"""
iBL{Q4GJ0x0000DNk~Le0000J0000G5C8xG0D(Wp{Qv*}FG)l}RCwBBWME(<25|2rMimPWQOX#VwTV)u_k@a;Qdt@I;Ifp7N
Yi!>aDV^+?NbhmgBY=Z00000NkvXXu0mjf
""",
}
